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
        self._turn += 1
        most = min(self.batch.capacity - len(ready), sum(waiting))
        given = self._share(len(ready), waiting, most)
        if not self._slots.room(len(ready) + sum(given)):
            most = self._slots.cells.free - len(ready)
            if most < 0 or (prompts and not ready and not most):
                return None
            given = self._share(len(ready), waiting, most)
        guesses = {} if prompts else self._guesser.guess(ready)
        counts = dict(zip(prompts, given, strict=True))
        order = [*ready, *(s for s in prompts if counts[s])]
        if self._slots.divided:
            # Only rows in the order of their columns are computed together.
            order.sort(key=_slot)
        return self._rows(order, counts, guesses)

    def _share(self, answering: int, waiting: list[int], most: int) -> list[int]:
        budget = self._pace.chunk(answering, len(waiting)) if waiting else 0
        return share(budget, waiting, most, self._turn)

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
