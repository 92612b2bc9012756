"""llama.cpp's context of a model, made anew when its cells are to lie otherwise."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.protocol.errors import LoadFailed
from uml.workers.backends.llama_cpp.cells import Cells, Columns
from uml.workers.backends.llama_cpp.layout import Layout, Layouts
from uml.workers.backends.llama_cpp.states import State, read

#: Larger buffers for states are not kept.
_KEPT_BYTES = 16 << 20


class Context:
    """`handle` and `memory` are the library's, and others after each `move`. params: of the
    library, but for what a layout decides. why: what the library last complained of. grows: called
    before the context takes more memory than it had.

    Raises: LoadFailed.
    """

    handle: Any
    memory: Any
    layout: Layout
    cells: Cells | Columns

    def __init__(
        self,
        model: Any,
        params: Any,
        layouts: Layouts,
        why: Callable[[], str] = lambda: "",
        grows: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._params, self._why, self._grows = model, params, why, grows
        self.layouts, self.handle = layouts, None
        #: Of what one token leaves in the cache; known when `portable` was asked.
        self.cell_bytes = 0
        #: Used again and again: fresh memory costs more than the copying.
        self._read = self._written = np.empty(0, np.uint8)
        #: The most cells that a layout had so far.
        self.most_cells = layouts.first().cells
        if not self._make(layouts.first()):
            raise LoadFailed(f"llama.cpp makes no context: {why() or 'out of memory'}")

    def move(self, layout: Layout) -> bool:
        """Everything in the cells is gone afterwards. False when there is no memory for that
        layout: then all is empty, but lies as before. Without memory even for that the process
        ends: whoever waits is served by the next one."""
        before = self.layout
        if layout.cells > self.most_cells:
            self.most_cells = layout.cells
            self._grows()
        lib.llama_free(self.handle)
        if self._make(layout):
            return True
        if not self._make(before):
            print(f"llama.cpp makes no context again: {self._why()}", file=sys.stderr, flush=True)
            os._exit(1)
        return False

    def use_threads(self, count: int) -> None:
        """For the next steps."""
        if count != self._params.n_threads:
            self._params.n_threads = self._params.n_threads_batch = count
            lib.llama_set_n_threads(self.handle, count, count)

    def state(self, sequence: int) -> State:
        """What the sequence has in its cells; good until the next state is asked for.

        Raises: ValueError.
        """
        size = lib.llama_state_seq_get_size(self.handle, sequence)
        state = self._read = _buffer(self._read, size)
        if lib.llama_state_seq_get_data(self.handle, _bytes(state), size, sequence) != size:
            raise ValueError("llama.cpp wrote another number of bytes than it said")
        if not self.layout.column:
            return State(state, [])
        return read(state, self.layout.sequences, sequence)

    def restore(self, sequence: int, packed: Any) -> bool:
        """Put a packed state into the cells of `sequence`; the caller counts them."""
        if not self.layout.column:
            return self._set(sequence, packed)
        try:
            return self._put(sequence, read(packed))
        except ValueError:
            return False

    def copy(self, source: int, target: int) -> bool:
        """Between columns, all of it; the caller counts."""
        try:
            return self._put(target, self.state(source))
        except ValueError:
            return False

    def portable(self) -> bool:
        """Whether this model's states fit into any column: tried with one token in the first."""
        try:
            self.cell_bytes = self.state(0).size()
        except ValueError:
            return False
        return self.copy(0, self.layout.sequences - 1)

    def _put(self, sequence: int, state: State) -> bool:
        streams = self.layout.sequences
        data = self._written = _buffer(self._written, state.size(streams))
        state.write(data, streams, sequence)
        return self._set(sequence, data)

    def _set(self, sequence: int, data: Any) -> bool:
        size = len(data)
        if lib.llama_state_seq_set_data(self.handle, _bytes(data), size, sequence) == size:
            return True
        lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return False

    def _make(self, layout: Layout) -> bool:
        params = self._params
        params.n_ctx, params.n_seq_max = layout.cells, layout.sequences
        params.kv_unified = not layout.column
        self.handle = lib.llama_init_from_model(self._model, params)
        if not self.handle:
            return False
        self.layout, self.memory = layout, lib.llama_get_memory(self.handle)
        count = layout.sequences
        self.cells = Columns(layout.column, count) if layout.column else Cells(layout.cells, count)
        return True


def _buffer(last: Any, size: int) -> Any:
    """So many bytes: of the last buffer if there are that many and not too many, else fresh."""
    base = last if last.base is None else last.base
    if size <= len(base) <= max(size, _KEPT_BYTES):
        return base[:size]
    return np.empty(size, np.uint8)


def _bytes(array: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
