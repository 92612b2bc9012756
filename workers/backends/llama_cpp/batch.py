"""One step's rows, in buffers made once, and the rows of results as the library keeps them."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

#: Views of results that are kept: more than there are counts of rows.
_MOST_VIEWS = 256


#: The binding makes an object of every pointer; this gives the address alone.
_get_logits = lib._lib["llama_get_logits"]
_get_logits.argtypes, _get_logits.restype = [lib.llama_context_p_ctypes], ctypes.c_void_p


class Batch:
    """At most `capacity` rows; `c` is what `llama_decode` takes."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self._token = np.zeros(capacity, np.int32)
        self._position = np.zeros(capacity, np.int32)
        self._sequence = np.zeros(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        arrays = (self._token, self._position, self._sequence, self._output)
        self._views = tuple(memoryview(array) for array in arrays)  # type: ignore[arg-type]
        self._ones = np.ones(capacity, np.int32)
        step = self._sequence.itemsize
        self._pointers = self._sequence.ctypes.data + step * np.arange(capacity, dtype=np.uint64)
        self._range = np.arange(capacity, dtype=np.int32)
        self.c = lib.llama_batch(
            n_tokens=0,
            token=_cast(self._token, lib.llama_token),
            embd=None,
            pos=_cast(self._position, lib.llama_pos),
            n_seq_id=_cast(self._ones, ctypes.c_int32),
            seq_id=_cast(self._pointers, ctypes.POINTER(lib.llama_seq_id)),
            logits=_cast(self._output, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.count = 0

    def single(self, token: int, position: int, sequence: int) -> None:
        """A row with an output: a running answer's. One at a time, written through views of the
        arrays, as for a few rows that is faster than whole slices."""
        i = self.count
        tokens, positions, sequences, outputs = self._views
        tokens[i], positions[i], sequences[i], outputs[i] = token, position, sequence, 1
        self.count = self.c.n_tokens = i + 1

    def run(
        self, tokens: list[int], position: int, sequence: int, output: bool, every: bool = False
    ) -> None:
        """Consecutive tokens of one sequence; `output` of the last one, or of `every` one."""
        start, end = self.count, self.count + len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = self._range[: len(tokens)] + position
        self._sequence[start:end] = sequence
        self._output[start:end] = every
        if output:
            self._output[end - 1] = 1
        self._close(end)

    def _close(self, count: int) -> None:
        self.count = self.c.n_tokens = count


class Results:
    """Logits of the latest step's outputs, without a copy: rows of `width`, in their order."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._views: dict[tuple[int, int], Any] = {}

    def rows(self, context: Any, count: int) -> Any:
        """Waits until they are there; valid until the next decode."""
        if not count:
            lib.llama_synchronize(context)
            return ()
        key = _get_logits(context) or 0, count
        view = self._views.get(key)
        if view is None:
            if len(self._views) > _MOST_VIEWS:
                self._views.clear()  # the library moved its buffer
            buffer = (ctypes.c_float * (count * self._width)).from_address(key[0])
            view = np.frombuffer(memoryview(buffer), np.float32).reshape(count, self._width)
            self._views[key] = view
        return view


def _cast(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
