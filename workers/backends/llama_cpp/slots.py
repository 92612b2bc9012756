"""Places in the KV cache: who computes where, what is kept for the next turn, what is parked.

A slot is llama.cpp's sequence id. It is empty, live (a sequence computes in it) or idle: its
request ended and its cells wait for a follow-up. In a pool that all share, idle cells slow every
step of the others, so they move to the shelf when somebody else computes; in columns (`layout`)
when somebody else needs the slot. The shelf is files in the page cache where there is a folder for
them, else this process's memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.workers.backends.llama_cpp.cells import Cells, Columns
from uml.workers.backends.llama_cpp.context import Context
from uml.workers.backends.llama_cpp.layout import Layout
from uml.workers.backends.llama_cpp.options import Options
from uml.workers.backends.llama_cpp.prefix import Parked, Shelf, common
from uml.workers.backends.llama_cpp.sequence import Tenant
from uml.workers.backends.llama_cpp.store import Store

#: While others compute, idle cells stay this long for a quick follow-up.
_KEEP_S = 1.0
#: Shorter conversations are computed again faster than they are moved.
_WORTH = 32
#: Less is computed again faster than it is copied from one column to another.
_LEAST_COPY = 8
#: Conversations that are saved when the last answer ends; it waits for that.
_SAVED = 4


@dataclass(eq=False)
class Slot:
    """tokens: what an idle slot's cells hold."""

    id: int
    owner: Tenant | None = None
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
    window: tokens a sliding window layer looks back, 0 = there are none. swa_full: such layers
    keep everything all the same. store: where conversations outlive this process."""

    def __init__(
        self,
        context: Context,
        shelf_bytes: int,
        *,
        cuttable: bool = True,
        window: int = 0,
        swa_full: bool = True,
        store: Store | None = None,
    ) -> None:
        self.context = context
        self.cuttable, self._window, self._swa_full = cuttable, window, swa_full
        self.slots = [Slot(i) for i in range(context.layout.sequences)]
        self._store = store
        self._shelf_bytes = shelf_bytes
        self.shelf = Shelf(shelf_bytes, store.known(), store.drop) if store else Shelf(shelf_bytes)

    @property
    def cells(self) -> Cells | Columns:
        return self.context.cells

    @property
    def divided(self) -> bool:
        """Each slot has cells of its own."""
        return self.context.layout.column > 0

    def live(self) -> list[Tenant]:
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
        if parked and length > best.length and self._fits(parked, length):
            best = Match(length, parked=parked)
        return best

    def _fits(self, parked: Parked, length: int) -> bool:
        written = len(parked.tokens)
        return written <= self.context.layout.most and self._whole(length, written)

    def _usable(self, slot: Slot, known: list[int], length: int) -> int:
        if not self.cuttable and (slot.owner is not None or length != len(known)):
            return 0  # a recurrent state is of its very end, and there is one
        if self.divided and slot is not self._continued(slot, length):
            # It would be copied. Only a good part of it is worth that.
            past = slot.owner.past if slot.owner else len(known)
            if length < max(_LEAST_COPY, past // 64) or not self._whole(length, past):
                return 0
        if self._window and not self._swa_full and length:
            first = lib.llama_memory_seq_pos_min(self.context.memory, slot.id)
            if first > max(0, length - self._window):
                return 0  # the window layers have forgotten what comes before
        return length

    def _whole(self, length: int, written: int) -> bool:
        """Whether the state of `written` tokens may be cut to `length`. What a window had left
        behind at its end is not in it, though it would be seen from further back."""
        if not self.cuttable:
            return length == written
        return not self._window or written <= self._window or length >= written - 1

    def room(self, count: int, keep: Slot | None = None) -> bool:
        """See that `count` cells are free, at the cost of idle slots other than `keep`. A column
        has as many as its layout promises."""
        while not self.divided and self.cells.free < count:
            idle = [slot for slot in self.slots if slot.idle and slot is not keep]
            if not idle:
                return False
            self.vacate(min(idle, key=lambda slot: slot.idle_since))
        return True

    def take(self, sequence: Tenant, match: Match) -> None:
        """Give `sequence` a slot that begins with what `match` found. A slot is vacant, and there
        is room for the cells a parked state needs."""
        slot = self._choose(match)
        known = 0
        if match.slot is slot:
            known = match.length
            self._cut(slot, known)
        elif match.slot is not None and self._copy(match.slot, slot, match.length):
            known = match.length
        elif match.parked is not None and self._restore(slot, match.parked):
            known = match.length
            self._cut(slot, known)
        slot.owner, slot.tokens = sequence, []
        sequence.slot, sequence.past = slot.id, known

    def release(self, sequence: Tenant, now: float) -> None:
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

    def forget(self, sequence: Tenant) -> None:
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
        if len(tokens) < _WORTH or not self._shelf_bytes or self.shelf.covers(tokens):
            return
        try:
            state = self.context.state(slot.id)
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

    def vacate_all(self, keep: Slot | None = None) -> bool:
        """In a pool: vacate every idle slot but `keep`; False when there was none. Who runs alone
        is not slowed by idle cells then, and its own lie in order: attention adds up in the order
        of cells, so a seed gives the same answer again."""
        idle = [slot for slot in self.slots if slot.idle and slot is not keep]
        for slot in idle if not self.divided else ():
            self.vacate(slot)
        return bool(idle) and not self.divided

    def tidy(self, now: float) -> None:
        """While others compute in the same pool: vacate the oldest idle slot whose time is over,
        one at a time."""
        if self.divided:
            return
        over = [s for s in self.slots if s.idle and now - s.idle_since > _KEEP_S]
        if over:
            self.vacate(min(over, key=lambda slot: slot.idle_since))

    def reset(self) -> None:
        """Forget everything, whatever state the library is in."""
        lib.llama_memory_clear(self.context.memory, True)
        self.cells.clear()
        for slot in self.slots:
            slot.owner, slot.tokens = None, []

    def movable(self) -> bool:
        """Whether what the running answers have in their cells fits into the RAM that is there for
        conversations outside of them."""
        used = sum(self.cells.length(slot.id) for slot in self.slots if slot.owner)
        size = self.context.cell_bytes * used
        parked = 0 if self._store else self.shelf.bytes
        return not used or size + parked <= self._shelf_bytes

    def move(self, layout: Layout) -> None:
        """Lay the cells out anew. Running answers keep what they have, in the first slots, in
        their order; conversations are parked."""
        for slot in [s for s in self.slots if s.idle]:
            self._park(slot)
        moving = [(owner, self._packed(owner.slot or 0), owner.past) for owner in self.live()]
        self.context.move(layout)
        self.slots = [Slot(i) for i in range(self.context.layout.sequences)]
        for slot, (owner, state, past) in zip(self.slots, moving, strict=False):
            slot.owner, owner.slot, owner.past = owner, slot.id, 0
            if state is not None and self.context.restore(slot.id, state):
                self.cells.append(slot.id, past)
                owner.past = past

    def _packed(self, sequence: int) -> Any:
        """A copy of what the sequence has in its cells; None if that cannot be had."""
        try:
            state = self.context.state(sequence)
        except ValueError:
            return None
        packed = np.empty(state.size(), np.uint8)
        state.write(packed)
        return packed

    def _choose(self, match: Match) -> Slot:
        """A vacant slot. An idle one that is mostly this conversation is continued in place; of
        the others an empty one, or the one that was idle longest. Columns that are not neighbours
        are computed one after the other, so there one beside the running ones is best."""
        if match.slot and self._continued(match.slot, match.length) is match.slot:
            return match.slot
        beside = {slot.id + step for slot in self.slots if slot.owner for step in (-1, 1)}

        def rank(slot: Slot) -> tuple[bool, bool, float, int]:
            far = self.divided and bool(beside) and slot.id not in beside
            return far, not slot.empty, slot.idle_since, slot.id

        slot = min((s for s in self.slots if s.owner is None), key=rank)
        if slot is not match.slot and slot.idle:
            self.vacate(slot)
        return slot

    def _continued(self, slot: Slot, length: int) -> Slot | None:
        """`slot`, if a request that shares so many tokens with it is to go on in it."""
        if slot.idle and (not self.cuttable or 2 * length >= len(slot.tokens)):
            return slot
        return None

    def _copy(self, source: Slot, target: Slot, length: int) -> bool:
        if isinstance(self.cells, Cells):
            lib.llama_memory_seq_cp(self.context.memory, source.id, target.id, 0, length)
            self.cells.copy(source.id, target.id, length)
            return True
        if not self.context.copy(source.id, target.id):
            return False
        self.cells.append(target.id, self.cells.length(source.id))
        self._cut(target, length)
        return True

    def _restore(self, slot: Slot, parked: Parked) -> bool:
        if not self.divided and self.cells.free < len(parked.tokens):
            return False
        if not self.context.restore(slot.id, parked.state):
            return False
        self.cells.append(slot.id, len(parked.tokens))
        self.shelf.touch(parked)
        if self._store:
            self._store.touch(parked)
        return True

    def _cut(self, slot: Slot, length: int) -> None:
        if length < self.cells.length(slot.id):
            lib.llama_memory_seq_rm(self.context.memory, slot.id, length, -1)
            self.cells.truncate(slot.id, length)

    def _clear(self, slot: Slot) -> None:
        lib.llama_memory_seq_rm(self.context.memory, slot.id, -1, -1)
        self.cells.truncate(slot.id, 0)
        slot.tokens = []


def make_slots(model: Any, context: Context, options: Options) -> Slots:
    return Slots(
        context,
        options.prefix_cache_bytes,
        cuttable=not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)),
        window=lib.llama_model_n_swa(model),
        swa_full=options.swa_full,
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
