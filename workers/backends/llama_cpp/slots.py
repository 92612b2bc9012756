"""Places in the KV cache: who computes where, what is kept for the next turn, what is parked.

A slot is llama.cpp's sequence id. It is empty, live (a sequence computes in it) or idle: its
request ended and its cells wait for a follow-up. In a pool that all share, idle cells slow every
step of the others, so they move to the shelf when somebody else computes; in columns (`layout`)
when somebody else needs the slot. The shelf is `parking`.

In a pool the cells of a sequence lie in the order of its text, so that it gets the same answer
whoever else is there. To keep it so nothing is put into gaps: cells that were left are dead, and
when they are many all others are laid close together again (measured, SmolLM2: 1,000 dead cells
slow a step of 12 answers by 4 %, moving 1,000 cells takes 2.4 ms).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import llama_cpp.llama_cpp as lib

from uml.workers.backends.llama_cpp.cells import Cells, Columns
from uml.workers.backends.llama_cpp.context import Context
from uml.workers.backends.llama_cpp.layout import Layout
from uml.workers.backends.llama_cpp.parking import WORTH, Parking
from uml.workers.backends.llama_cpp.prefix import Parked, common
from uml.workers.backends.llama_cpp.sequence import Tenant

#: While others compute, idle cells stay this long for a quick follow-up.
_KEEP_S = 1.0
#: Less is computed again faster than it is copied from one column to another.
_LEAST_COPY = 8
#: Conversations that are saved when the last answer ends; it waits for that.
_SAVED = 4
#: In a pool: dead cells that slow nobody much, and one more for so many that somebody has.
_FEW_DEAD, _DEAD_PART = 512, 8


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
    window: tokens a sliding window layer looks back, 0 = there are none."""

    def __init__(
        self,
        context: Context,
        parking: Parking,
        *,
        cuttable: bool = True,
        window: int = 0,
    ) -> None:
        self.context, self._parking = context, parking
        self.cuttable, self._window = cuttable, window
        self.slots = [Slot(i) for i in range(context.layout.sequences)]

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
        parked, length = self._parking.shelf.best(tokens)
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
        if self._window and length:
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
            if idle and self.cells.free + self.cells.dead < count:
                self.vacate(min(idle, key=lambda slot: slot.idle_since))
            elif self.cells.dead:
                self._gather()
            else:
                return False
        return True

    def take(self, sequence: Tenant, match: Match) -> None:
        """Give `sequence` a slot that begins with what `match` found. A slot is vacant, and there
        is room for the cells a parked state needs."""
        slot = self._choose(match)
        known = match.length
        if match.slot:
            known = min(known, self.cells.length(match.slot.id))
        if match.slot is slot:
            self.context.cut(slot.id, known)
        elif match.slot:
            known = known if self.context.copy(match.slot.id, slot.id, known) else 0
        elif match.parked and self._restore(slot, match.parked):
            self.context.cut(slot.id, known)
        else:
            known = 0
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
        if len(slot.tokens) < WORTH:
            self._clear(slot)

    def forget(self, sequence: Tenant) -> None:
        """Drop cells beyond what counts as computed: guesses that were wrong."""
        if sequence.slot is not None:
            self.context.cut(sequence.slot, sequence.past)

    def vacate(self, slot: Slot) -> None:
        """Empty an idle slot; its state goes to the shelf if it is worth it."""
        self._parking.park(slot.id, slot.tokens)
        self._clear(slot)

    def save(self) -> None:
        """Nobody computes any more, so this process may be killed as soon as that is known: see
        that the latest conversations outlive it."""
        if self._parking.lasting:
            idle = sorted((s for s in self.slots if s.idle), key=lambda slot: -slot.idle_since)
            for slot in idle[:_SAVED]:
                self._parking.park(slot.id, slot.tokens)

    def vacate_all(self, keep: Slot | None = None) -> bool:
        """In a pool: vacate every idle slot but `keep`; False when there was none. Who runs alone
        is not slowed by idle cells then."""
        idle = [slot for slot in self.slots if slot.idle and slot is not keep]
        for slot in idle if not self.divided else ():
            self.vacate(slot)
        if self.cells.dead:
            self._gather()
        return bool(idle) and not self.divided

    def tidy(self, now: float) -> None:
        """While others compute in the same pool: vacate the oldest idle slot whose time is over,
        one at a time, and see that dead cells do not become many."""
        if self.divided:
            return
        over = [s for s in self.slots if s.idle and now - s.idle_since > _KEEP_S]
        if over:
            self.vacate(min(over, key=lambda slot: slot.idle_since))
        cells = self.cells
        if cells.dead > _FEW_DEAD + (cells.used - cells.dead) // _DEAD_PART:
            self._gather()

    def reset(self) -> None:
        """Forget everything, whatever state the library is in."""
        self.context.clear(data=True)
        for slot in self.slots:
            slot.owner, slot.tokens = None, []

    def movable(self) -> bool:
        """Whether what the running answers have in their cells fits into the RAM that is there for
        conversations outside of them."""
        return self._parking.holds(
            sum(self.cells.length(slot.id) for slot in self.slots if slot.owner)
        )

    def move(self, layout: Layout) -> None:
        """Lay the cells out anew. Running answers keep what they have, in the first slots, in
        their order; conversations are parked."""
        for slot in [s for s in self.slots if s.idle]:
            self._parking.park(slot.id, slot.tokens)
        owners = self.live()
        moving = [(self._packed(owner.slot or 0), owner.past) for owner in owners]
        self.context.move(layout)
        self.slots = [Slot(i) for i in range(self.context.layout.sequences)]
        for slot, owner, (state, past) in zip(self.slots, owners, moving, strict=False):
            slot.owner, owner.slot = owner, slot.id
            found = state is not None and self.context.restore(slot.id, state, past)
            owner.past = past if found else 0

    def _packed(self, sequence: int) -> Any:
        with contextlib.suppress(ValueError):
            return self.context.packed(sequence)
        return None

    def _gather(self) -> None:
        """In a pool: free the dead cells, by laying the others close together. Where there is no
        room for copies they are freed where they are."""
        cells = self.cells
        held = [slot for slot in self.slots if cells.length(slot.id)]
        if not self._parking.holds(cells.used - cells.dead):
            self.context.free_dead()
            return
        moving = []
        try:
            for i, slot in enumerate(held):
                shares = ((cells.common(other.id, slot.id), other.id) for other in held[:i])
                beside = max(shares, default=(0, 0))
                state = self.context.packed(slot.id, skip=beside[0])
                moving.append((slot, state, cells.length(slot.id), beside))
        except ValueError:
            self.context.free_dead()
            return
        self.context.clear()
        for slot, state, length, beside in moving:
            shared, source = beside
            there = shared <= self.cells.length(source)
            if not (there and self.context.restore(slot.id, state, length, beside)):
                length = 0
            if slot.owner:
                slot.owner.past = length
            elif not length:
                slot.tokens = []

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

    def _restore(self, slot: Slot, parked: Parked) -> bool:
        if not self.divided and self.cells.free < len(parked.tokens):
            return False
        return self._parking.restore(slot.id, parked)

    def _clear(self, slot: Slot) -> None:
        self.context.cut(slot.id, 0)
        slot.tokens = []


def make_slots(model: Any, context: Context, parking: Parking) -> Slots:
    return Slots(
        context,
        parking,
        cuttable=not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)),
        window=lib.llama_model_n_swa(model),
    )
