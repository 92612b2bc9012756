"""Conversations outside the KV cache: what leaves it, and how it comes back.

The shelf is files in the page cache where there is a folder for them, else this process's memory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.workers.backends.llama_cpp.context import Context
from uml.workers.backends.llama_cpp.options import Options
from uml.workers.backends.llama_cpp.prefix import Parked, Shelf
from uml.workers.backends.llama_cpp.store import Store

#: Shorter conversations are computed again faster than they are moved.
WORTH = 32


class Parking:
    """limit: bytes of the shelf. store: where conversations outlive this process."""

    def __init__(self, context: Context, limit: int, store: Store | None = None) -> None:
        self._context, self._limit, self._store = context, limit, store
        self.shelf = Shelf(limit, store.known(), store.drop) if store else Shelf(limit)

    @property
    def lasting(self) -> bool:
        """Whether what is parked outlives this process."""
        return self._store is not None

    def park(self, sequence: int, tokens: list[int]) -> None:
        """Keep what `sequence` has in its cells, the KV of `tokens`, if it is worth it."""
        if len(tokens) < WORTH or not self._limit or self.shelf.covers(tokens):
            return
        try:
            state = self._context.state(sequence)
        except ValueError:
            return
        size = state.size()
        if not self.shelf.fits(size):
            return
        parked = self._store.keep(tokens, state.pieces(), size) if self._store else None
        if parked is None:
            parked = Parked(tokens, np.empty(size, np.uint8), size)
            state.write(parked.state)
        self.shelf.put(parked)

    def restore(self, sequence: int, parked: Parked) -> bool:
        """Put it into the cells of `sequence`, which has none."""
        if not self._context.restore(sequence, parked.state, len(parked.tokens)):
            return False
        self.shelf.touch(parked)
        if self._store:
            self._store.touch(parked)
        return True

    def holds(self, cells: int) -> bool:
        """Whether copies of so many cells fit into the RAM that is there for conversations."""
        parked = 0 if self._store else self.shelf.bytes
        return not cells or self._context.cell_bytes * cells + parked <= self._limit


def make_parking(context: Context, options: Options) -> Parking:
    """With a folder for all that decides what a state looks like, where there may be one."""
    limit = options.prefix_cache_bytes
    if not options.conversations_dir or not limit:
        return Parking(context, limit)
    kind = f"{options.cache_type_k} {options.cache_type_v} {options.flash_attention}"
    text = f"{lib.llama_version().decode()} {kind} {options.swa_full} {options.n_gpu_layers != 0}"
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Parking(context, limit, Store(Path(options.conversations_dir) / key))
