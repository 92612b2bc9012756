"""Places in the KV pool: who computes where, what is kept for the next turn, what is parked.

A slot is llama.cpp's sequence id. It is empty, live (a sequence computes in it) or idle: its
request ended and its cells wait for a follow-up. Idle cells slow every step of the others, so they
move to the shelf when somebody else computes, needs the slot or needs the cells. The shelf is files
in the page cache where there is a folder for them, else this process's memory.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.workers.backends.llama_cpp.cells import Cells
from uml.workers.backends.llama_cpp.options import Options
from uml.workers.backends.llama_cpp.prefix import Parked, Shelf, common
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.store import Store

#: While others compute, idle cells stay this long for a quick follow-up.
_KEEP_S = 1.0
#: Shorter conversations are computed again faster than they are moved.
_WORTH = 32
#: Conversations that are saved when the last answer ends; it waits for that.
_SAVED = 4


@dataclass(eq=False)
class Slot:
    """tokens: what an idle slot's cells hold."""

    id: int
    owner: Sequence | None = None
    tokens: list[int] = field(default_factory=list)
    idle_since: float = 0.0

    @property
    def idle(self) -> bool:
        return self.owner is None and bool(self.tokens)

    @property
    def empty(self) -> bool:
        return self.owner is None and not self.tokens


@dataclass(eq=False)
class Match:
    """A known beginning of `length` tokens. Of a live slot it is there when `owner.past` is that
    far."""

    length: int = 0
    slot: Slot | None = None
    parked: Parked | None = None


class Slots:
    """cuttable: the memory can forget the end of a sequence (recurrent models cannot).
    window: tokens a sliding window layer keeps, 0 = all layers keep everything. store: where
    conversations outlive this process."""

    def __init__(
        self,
        context: Any,
        count: int,
        cells: int,
        shelf_bytes: int,
        *,
        cuttable: bool = True,
        window: int = 0,
        store: Store | None = None,
    ) -> None:
        self._context, self._memory = context, lib.llama_get_memory(context)
        self.cuttable, self._window = cuttable, window
        self.slots = [Slot(i) for i in range(count)]
        self.cells = Cells(cells, count)
        self._store = store
        self.shelf = Shelf(shelf_bytes, store.known(), store.drop) if store else Shelf(shelf_bytes)

    def live(self) -> list[Sequence]:
        return [slot.owner for slot in self.slots if slot.owner is not None]

    @property
    def vacant(self) -> bool:
        """Whether a slot could be had."""
        return any(slot.owner is None for slot in self.slots)

    def find(self, tokens: list[int]) -> Match:
        """The longest known beginning of `tokens`; the last one has always to be computed."""
        most = len(tokens) - 1
        best = Match()
        for slot in self.slots:
            known = slot.owner.tokens if slot.owner else slot.tokens
            if known[:1] != tokens[:1]:
                continue
            length = self._usable(slot, known, min(common(known, tokens), most))
            if length > best.length:
                best = Match(length, slot)
        parked, length = self.shelf.best(tokens)
        length = min(length, most)
        if parked and length > best.length and (self.cuttable or length == len(parked.tokens)):
            best = Match(length, parked=parked)
        return best

    def _usable(self, slot: Slot, known: list[int], length: int) -> int:
        if not self.cuttable and (slot.owner is not None or length != len(known)):
            return 0  # a recurrent state is of its very end, and there is one
        if self._window and length:
            first = lib.llama_memory_seq_pos_min(self._memory, slot.id)
            if first > max(0, length - self._window):
                return 0  # the window layers have forgotten what comes before
        return length

    def room(self, count: int, keep: Slot | None = None) -> bool:
        """See that `count` cells are free, at the cost of idle slots other than `keep`."""
        while self.cells.free < count:
            idle = [slot for slot in self.slots if slot.idle and slot is not keep]
            if not idle:
                return False
            self.vacate(min(idle, key=lambda slot: slot.idle_since))
        return True

    def take(self, sequence: Sequence, match: Match) -> None:
        """Give `sequence` a slot that begins with what `match` found. A slot is vacant, and there
        is room for the cells a parked state needs."""
        slot = self._choose(match)
        known = 0
        if match.slot is slot:
            known = match.length
            self._cut(slot, known)
        elif match.slot is not None:
            known = match.length
            lib.llama_memory_seq_cp(self._memory, match.slot.id, slot.id, 0, known)
            self.cells.copy(match.slot.id, slot.id, known)
        elif match.parked is not None and self._restore(slot, match.parked):
            known = match.length
            self._cut(slot, known)
        slot.owner, slot.tokens = sequence, []
        sequence.slot, sequence.past = slot.id, known

    def release(self, sequence: Sequence, now: float) -> None:
        """The sequence leaves its slot; what it computed stays there, idle."""
        if sequence.slot is None:
            return
        self.forget(sequence)
        slot = self.slots[sequence.slot]
        slot.owner, slot.tokens = None, sequence.tokens[: sequence.past]
        slot.idle_since = now
        sequence.slot, sequence.past = None, 0
        if len(slot.tokens) < _WORTH:
            self._clear(slot)

    def forget(self, sequence: Sequence) -> None:
        """Drop cells beyond what counts as computed: guesses that were wrong."""
        if sequence.slot is not None:
            self._cut(self.slots[sequence.slot], sequence.past)

    def vacate(self, slot: Slot) -> None:
        """Empty an idle slot; its state goes to the shelf if it is worth it."""
        self._park(slot)
        self._clear(slot)

    def save(self) -> None:
        """Nobody computes any more, so this process may be killed as soon as that is known: see
        that the latest conversations outlive it."""
        if self._store:
            idle = sorted((s for s in self.slots if s.idle), key=lambda slot: -slot.idle_since)
            for slot in idle[:_SAVED]:
                self._park(slot)

    def _park(self, slot: Slot) -> None:
        tokens = slot.tokens
        if len(tokens) < _WORTH or self.shelf.covers(tokens):
            return
        size = lib.llama_state_seq_get_size(self._context, slot.id)
        if not self.shelf.fits(size):
            return
        parked = self._store.room(tokens, size) if self._store else None
        parked = parked or Parked(tokens, np.empty(size, np.uint8), size)
        written = lib.llama_state_seq_get_data(self._context, _bytes(parked.state), size, slot.id)
        if written != size:
            if self._store:
                self._store.drop(parked)
            return
        if self._store:
            self._store.keep(parked)
        self.shelf.put(parked)

    def vacate_all(self, keep: Slot | None = None) -> bool:
        """Vacate every idle slot but `keep`; False when there was none. Who runs alone is not
        slowed by idle cells then, and its own lie in order: attention adds up in the order of
        cells, so a seed gives the same answer again."""
        idle = [slot for slot in self.slots if slot.idle and slot is not keep]
        for slot in idle:
            self.vacate(slot)
        return bool(idle)

    def tidy(self, now: float) -> None:
        """While others compute: vacate the oldest idle slot whose time is over, one at a time."""
        over = [s for s in self.slots if s.idle and now - s.idle_since > _KEEP_S]
        if over:
            self.vacate(min(over, key=lambda slot: slot.idle_since))

    def reset(self) -> None:
        """Forget everything, whatever state the library is in."""
        lib.llama_memory_clear(self._memory, True)
        self.cells.clear()
        for slot in self.slots:
            slot.owner, slot.tokens = None, []

    def _choose(self, match: Match) -> Slot:
        """A vacant slot. An idle one that is mostly this conversation is continued in place."""
        source = match.slot
        if source and source.idle and (not self.cuttable or 2 * match.length >= len(source.tokens)):
            return source
        for slot in self.slots:
            if slot.empty:
                return slot
        idle = min((s for s in self.slots if s.idle), key=lambda slot: slot.idle_since)
        if idle is source:
            return idle
        self.vacate(idle)
        return idle

    def _restore(self, slot: Slot, parked: Parked) -> bool:
        if self.cells.free < len(parked.tokens):
            return False
        read = lib.llama_state_seq_set_data(
            self._context, _bytes(parked.state), parked.size, slot.id
        )
        if read != parked.size:
            lib.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
            return False
        self.cells.append(slot.id, len(parked.tokens))
        self.shelf.touch(parked)
        if self._store:
            self._store.touch(parked)
        return True

    def _cut(self, slot: Slot, length: int) -> None:
        if length < self.cells.length(slot.id):
            lib.llama_memory_seq_rm(self._memory, slot.id, length, -1)
            self.cells.truncate(slot.id, length)

    def _clear(self, slot: Slot) -> None:
        lib.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
        self.cells.truncate(slot.id, 0)
        slot.tokens = []


def make_slots(model: Any, context: Any, options: Options) -> Slots:
    return Slots(
        context,
        options.slots,
        options.kv_cells,
        options.prefix_cache_bytes,
        cuttable=not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)),
        window=0 if options.swa_full else lib.llama_model_n_swa(model),
        store=_store(options),
    )


def _store(options: Options) -> Store | None:
    """A folder for all that decides what a state looks like."""
    if not options.conversations_dir or not options.prefix_cache_bytes:
        return None
    kind = f"{options.cache_type_k} {options.cache_type_v} {options.flash_attention}"
    text = f"{lib.llama_version().decode()} {kind} {options.swa_full} {options.n_gpu_layers != 0}"
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Store(Path(options.conversations_dir) / key)


def _bytes(array: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
