"""Tokens worth checking in a step: from what an answer repeats, or from a draft model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uml.workers.backends.llama_cpp.gain import SIZES, Gain, Offer
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.slots import Slots

if TYPE_CHECKING:
    from uml.workers.backends.llama_cpp.draft import Draft

Guesses = dict[Sequence, list[int]]


class Guesser:
    """Two sources, of which `gain` says whether one pays. on: guess at all. draft: a second model,
    where there is one."""

    def __init__(self, slots: Slots, gain: Gain, draft: Draft | None, *, on: bool) -> None:
        self._slots, self._gain, self._draft = slots, gain, draft
        self._on = on and slots.cuttable

    def guess(self, ready: list[Sequence]) -> Guesses:
        """What may follow in each of these answers, for those where guessing pays."""
        together = self._slots.divided and len(ready) > 1
        if not (self._on and ready) or (together and not self._draft):
            return {}
        spare = self._spare(ready)
        if spare < SIZES[0]:
            return {}
        able = [s for s in ready if s.request.speculate]
        # Columns with different numbers of rows are computed one after the other.
        looked = {} if together else {s: s.lookup.guess() for s in able}
        found = {s: guess for s, guess in looked.items() if guess}
        if not (found or self._draft):
            return {}
        offers = [Offer([s.lookup.hits for s in found])]
        if self._draft and able and not (together and len(able) < len(ready)):
            offers.append(self._draft.offer(able))
        choice = self._gain.choose(len(ready), offers, spare)
        if choice is None:
            return {}
        room = {s: min(choice.size, s.limit - len(s.tokens) - 1) for s in able}
        if choice.offer == 0:
            guesses = {s: found[s][: room[s]] for s in found}
        else:
            assert self._draft is not None
            begin = time.monotonic()
            guesses = self._draft.guess(room)
            if choice.trial:
                self._gain.spend(time.monotonic() - begin)
        for sequence, guess in guesses.items():
            sequence.request.guessed += len(guess)
        return guesses

    def _spare(self, ready: list[Sequence]) -> int:
        """Rows that could be added to a step of `ready`. A row of results for each slot is all
        there is."""
        layout, most = self._slots.context.layout, self._slots.context.layouts.pool.sequences
        if layout.column:
            free = (layout.column - max(len(s.tokens) for s in ready)) * len(ready)
        else:
            free = self._slots.cells.free - len(ready)
        return min(most - len(ready), free)
