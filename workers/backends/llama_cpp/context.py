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
        """What the sequence has in its cells, of a pool all as `head`; good until the next state is
        asked for.

        Raises: ValueError.
        """
        size = lib.llama_state_seq_get_size(self.handle, sequence)
        state = self._read = _buffer(self._read, size)
        if lib.llama_state_seq_get_data(self.handle, _bytes(state), size, sequence) != size:
            raise ValueError("llama.cpp wrote another number of bytes than it said")
        if not self.layout.column:
            return State(state, [])
        return read(state, self.layout.sequences, sequence)

    def packed(self, sequence: int, skip: int = 0) -> Any:
        """A copy of what the sequence has in its cells, without the first `skip` of them, free of
        how they lie. Raises: ValueError."""
        state = self.state(sequence)
        if skip:  # somebody has them, too: there is one pool, whose states are packed, and unread
            state = read(state.head).after(skip)
        packed = np.empty(state.size(), np.uint8)
        state.write(packed)
        return packed

    def restore(
        self, sequence: int, packed: Any, count: int, beside: tuple[int, int] = (0, 0)
    ) -> bool:
        """Put a packed state into the cells of `sequence`, which has none; then it has `count`.
        beside: another sequence in the same pool and how many of its first cells are those of
        this one, too; the state begins after them."""
        try:
            column = self.layout.column > 0
            if not (self._put(sequence, read(packed)) if column else self._set(sequence, packed)):
                return False
        except ValueError:
            return False
        shared, source = beside
        if shared:
            self.copy(source, sequence, shared)
        self.cells.append(sequence, count - shared)
        return True

    def copy(self, source: int, target: int, length: int) -> bool:
        """The first `length` cells of `source` are those of `target`, too, which has none."""
        if isinstance(self.cells, Cells):
            lib.llama_memory_seq_cp(self.memory, source, target, 0, length)
            self.cells.copy(source, target, length)
            return True
        try:
            if not self._put(target, self.state(source)):
                return False
        except ValueError:
            return False
        self.cells.append(target, self.cells.length(source))
        self.cut(target, length)
        return True

    def cut(self, sequence: int, length: int) -> None:
        """Keep the first `length` cells of `sequence`. In a pool the others stay taken until
        `free_dead`: llama.cpp would put what comes next into the gaps, and attention adds up in the
        order of cells, so an answer would be another one depending on who left before it."""
        if length >= self.cells.length(sequence):
            return
        dead = self.cells.truncate(sequence, length)
        if dead is not None and self.cells.buries:
            lib.llama_memory_seq_cp(self.memory, sequence, self.layout.sequences, dead, -1)
        lib.llama_memory_seq_rm(self.memory, sequence, length, -1)

    def free_dead(self) -> None:
        """Where they are, so that what comes next lies between others."""
        if self.cells.dead:
            lib.llama_memory_seq_rm(self.memory, self.layout.sequences, -1, -1)
            self.cells.free_dead()

    def clear(self, *, data: bool = False) -> None:
        """Nobody has any cells. data: nor is anything left in them."""
        lib.llama_memory_clear(self.memory, data)
        self.cells.clear()

    def portable(self) -> bool:
        """Whether this model's states fit into any column: tried with the one token that is in the
        first, uncounted."""
        try:
            state = self.state(0)
            self.cell_bytes = state.size()
            return self._put(self.layout.sequences - 1, state)
        except ValueError:
            return False

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
        buries = not layout.column and bool(self.layouts.columns)
        # One more that has the dead cells.
        params.n_ctx, params.n_seq_max = layout.cells, layout.sequences + buries
        params.kv_unified = not layout.column
        self.handle = lib.llama_init_from_model(self._model, params)
        if not self.handle:
            return False
        self.layout, self.memory = layout, lib.llama_get_memory(self.handle)
        if layout.column:
            self.cells = Columns(layout.column, layout.sequences)
        else:
            self.cells = Cells(layout.cells, layout.sequences, buries=buries)
        return True


def _buffer(last: Any, size: int) -> Any:
    """So many bytes: of the last buffer if there are that many and not too many, else fresh."""
    base = last if last.base is None else last.base
    if size <= len(base) <= max(size, _KEPT_BYTES):
        return base[:size]
    return np.empty(size, np.uint8)


def _bytes(array: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
