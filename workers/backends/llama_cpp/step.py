"""What a step computes: one token of every running answer, guesses, a piece of the prompts."""

from __future__ import annotations

from uml.workers.backends.llama_cpp.batch import Batch
from uml.workers.backends.llama_cpp.gain import Gain
from uml.workers.backends.llama_cpp.guesser import Guesser, Guesses
from uml.workers.backends.llama_cpp.plan import Pace, share
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.slots import Slots

#: Sequence, its first row of results in the batch, and the tokens guessed to follow its last one.
Output = tuple[Sequence, int, list[int]]
_NOTHING: list[int] = []
#: Who takes part with how many tokens.
Part = tuple[Sequence, int]


class Step:
    """Fills `batch`."""

    def __init__(
        self, slots: Slots, batch: Batch, pace: Pace, gain: Gain, guesser: Guesser
    ) -> None:
        self._slots, self._pace, self._gain, self._guesser = slots, pace, gain, guesser
        self.batch = batch
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
            budget = self._pace.chunk(len(ready), len(prompts), self.batch.capacity - len(ready))
            budget = min(budget, sum(waiting))
        if not self._slots.room(len(ready) + budget):
            budget = min(budget, self._slots.cells.free - len(ready))
        if budget < 0 or (prompts and not ready and not budget):
            return None
        guesses = {} if prompts else self._guesser.guess(ready)
        self._turn += 1
        counts = dict(zip(prompts, share(budget, waiting, self._turn), strict=True))
        order = [*ready, *(s for s in prompts if counts[s])]
        if self._slots.divided:
            # Only rows in the order of their columns are computed together.
            order.sort(key=_slot)
        return self._rows(order, counts, guesses)

    def _rows(
        self, order: list[Sequence], counts: dict[Sequence, int], guesses: Guesses
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


def _slot(sequence: Sequence) -> int:
    return sequence.slot or 0
