"""What a step computes: one token of every running answer, guesses, a piece of the prompts."""

from __future__ import annotations

from uml.workers.backends.llama_cpp.batch import Batch
from uml.workers.backends.llama_cpp.draft import Gain
from uml.workers.backends.llama_cpp.plan import Pace, share
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.slots import Slots

#: Sequence, its first row of results in the batch, and the tokens guessed to follow its last one.
Output = tuple[Sequence, int, list[int]]
_NOTHING: list[int] = []
#: Who takes part with how many tokens.
Part = tuple[Sequence, int]


class Step:
    """Fills `batch`. speculate: guess tokens where `gain` says that it pays."""

    def __init__(self, slots: Slots, batch: Batch, pace: Pace, gain: Gain, speculate: bool) -> None:
        self._slots, self._pace, self._gain = slots, pace, gain
        self.batch, self._speculate = batch, speculate and slots.cuttable
        #: Of the latest step: running answers, and tokens of prompts.
        self._answering = self._prompting = 0
        self._turn = 0

    def fill(self, live: list[Sequence]) -> tuple[list[Part], list[Output]] | None:
        """Gives who takes part, and whose next tokens can be chosen afterwards, in the order of
        the rows of results. None: there are no cells, somebody has to give way."""
        ready = [s for s in live if s.pending == 1 and not s.request.job.blocked]
        prompts = [s for s in live if s.pending > 1]
        # Sums are rounded otherwise in a row of its own than inside a chunk. Where answers are
        # to be repeatable the last token always gets one, whatever came from the cache.
        waiting = [s.pending - s.request.repeatable for s in prompts]
        budget = 0
        if prompts:
            budget = self._pace.chunk(len(ready), self.batch.capacity - len(ready))
            budget = min(budget, sum(waiting))
        if not self._slots.room(len(ready) + budget):
            budget = min(budget, self._slots.cells.free - len(ready))
        if budget < 0 or (prompts and not ready and not budget):
            return None
        guesses = {} if prompts else self._guess(ready)
        self._turn += 1
        counts = dict(zip(prompts, share(budget, waiting, self._turn), strict=True))
        self._answering, self._prompting = len(ready), budget
        order = [*ready, *(s for s in prompts if counts[s])]
        if self._slots.divided:
            # Only rows in the order of their columns are computed together.
            order.sort(key=_slot)
        return self._rows(order, counts, guesses)

    def observe(self, seconds: float) -> None:
        """The step took so long."""
        if not self._prompting:
            self._gain.observe(self.batch.count, seconds)
            return
        # What the answers would have taken anyway is not the prompts' doing.
        answers_s = min(self._gain.seconds(self._answering) or 0.0, 0.8 * seconds)
        self._pace.observe(self._prompting, seconds - answers_s)

    def _rows(
        self, order: list[Sequence], counts: dict[Sequence, int], guesses: dict[Sequence, list[int]]
    ) -> tuple[list[Part], list[Output]]:
        batch, parts, outputs = self.batch, list[Part](), list[Output]()
        batch.clear()
        for s in order:
            guess, count = guesses.get(s), counts.get(s)
            if guess is None and count is None:
                outputs.append((s, batch.count, _NOTHING))
                batch.single(s.tokens[-1], s.past, s.slot or 0)
                parts.append((s, 1))
                continue
            guess, count = guess or _NOTHING, count or 1
            whole = count == s.pending
            if whole:
                outputs.append((s, batch.count + count - 1, guess))
            tokens = s.tokens[s.past : s.past + count] + guess
            batch.run(tokens, s.past, s.slot or 0, output=whole, every=bool(guess))
            parts.append((s, len(tokens)))
        return parts, outputs

    def _guess(self, ready: list[Sequence]) -> dict[Sequence, list[int]]:
        """Tokens worth checking, of those answers where guessing pays."""
        spare = self._spare(ready) if self._speculate else 0
        if spare < 2:
            return {}
        found = {s: s.lookup.guess() for s in ready if s.request.speculate}
        able = [s for s, guess in found.items() if guess]
        size = self._gain.size(len(ready), [s.lookup.hits for s in able], spare)
        if not size:
            return {}
        return {s: found[s][: min(size, s.limit - len(s.tokens) - 1)] for s in able}

    def _spare(self, ready: list[Sequence]) -> int:
        """Rows that could be added to a step of `ready`. A row of results for each slot is all
        there is."""
        layout, most = self._slots.context.layout, self._slots.context.layouts.pool.sequences
        if not layout.column:
            return min(most, self._slots.cells.free) - len(ready)
        # Columns with different numbers of rows are computed one after the other.
        return min(most - 1, layout.column - len(ready[0].tokens)) if len(ready) == 1 else 0


def _slot(sequence: Sequence) -> int:
    return sequence.slot or 0
