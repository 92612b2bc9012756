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
from uml.workers.backends.llama_cpp.states import pack, unpack


class Context:
    """`handle` and `memory` are the library's, and others after each `move`. params: of the
    library, but for what a layout decides. why: what the library last complained of.

    Raises: LoadFailed.
    """

    handle: Any
    memory: Any
    layout: Layout
    cells: Cells | Columns

    def __init__(
        self, model: Any, params: Any, layouts: Layouts, why: Callable[[], str] = lambda: ""
    ) -> None:
        self._model, self._params, self._why = model, params, why
        self.layouts, self.handle = layouts, None
        #: Of what one token leaves in the cache; known when `portable` was asked.
        self.cell_bytes = 0
        if not self._make(layouts.first()):
            raise LoadFailed(f"llama.cpp makes no context: {why() or 'out of memory'}")

    def move(self, layout: Layout) -> bool:
        """Everything in the cells is gone afterwards. False when there is no memory for that
        layout: then all is empty, but lies as before. Without memory even for that the process
        ends: whoever waits is served by the next one."""
        before = self.layout
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

    def state(self, sequence: int) -> Any:
        """What the sequence has in its cells, packed. Raises: ValueError."""
        size = lib.llama_state_seq_get_size(self.handle, sequence)
        state = np.empty(size, np.uint8)
        if lib.llama_state_seq_get_data(self.handle, _bytes(state), size, sequence) != size:
            raise ValueError("llama.cpp wrote another number of bytes than it said")
        return pack(state, self.layout.sequences, sequence) if self.layout.column else state

    def restore(self, sequence: int, packed: Any) -> bool:
        """Put a packed state into the cells of `sequence`; the caller counts them."""
        try:
            columns = self.layout.sequences if self.layout.column else 0
            state = unpack(packed, columns, sequence) if columns else packed
        except ValueError:
            return False
        size = len(state)
        if lib.llama_state_seq_set_data(self.handle, _bytes(state), size, sequence) == size:
            return True
        lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return False

    def portable(self) -> bool:
        """Whether this model's states fit into any column: tried with one token in the first."""
        try:
            state = self.state(0)
        except ValueError:
            return False
        self.cell_bytes = len(state)
        return self.restore(self.layout.sequences - 1, state)

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


def _bytes(array: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
