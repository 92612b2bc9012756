"""Speculative decoding: tokens guessed from the text so far, checked in one step: pure.

A guess costs rows in the step that checks it, and rows are cheap on some machines (a GPU, a model
larger than the caches) and dear on others (a small model on two cores). So nothing is assumed: how
long a step of so many rows takes is measured, how often guesses are right is measured too, also
while none are made, and a guess is made only where both together promise more tokens per second.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that have to agree before what followed them is guessed to follow again.
_AGREE = 3
#: The most tokens guessed at once.
MOST = 12
#: How fast what was measured fades: steps' times, guesses' hits.
_FADE_S, _FADE_HITS = 0.2, 0.1
#: A guess has to promise so much more, for what the measuring itself gets wrong.
_MARGIN = 1.1
#: Where a step of so many rows was never timed, one is tried that often when guesses hit.
_TRY_EVERY, _TRY_HITS = 50, 0.8


class Lookup:
    """Guesses by looking up where the last tokens of an answer stood before."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._seen = 0
        self._last: dict[tuple[int, ...], int] = {}
        #: How often the first guessed token was right, lately.
        self.hits = 0.0
        self._guessed: int | None = None

    def guess(self) -> list[int]:
        """What may follow the tokens so far, at most `MOST`; remembered until `judge`."""
        tokens, length = self._tokens, len(self._tokens)
        for end in range(max(self._seen, _AGREE), length):
            self._last[tuple(tokens[end - _AGREE : end])] = end
        self._seen = length
        at = self._last.get(tuple(tokens[length - _AGREE :])) if length > _AGREE else None
        found = list(tokens[at : at + MOST]) if at is not None else []
        self._guessed = found[0] if found else None
        return found

    def judge(self, token: int) -> None:
        """`token` is what followed."""
        if self._guessed is not None:
            self.hits += _FADE_HITS * ((token == self._guessed) - self.hits)
            self._guessed = None


class Gain:
    """Whether guesses pay, from the times of steps that only wrote answers."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}
        self._untried = 0

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`."""
        known = self._step_s.get(rows)
        self._step_s[rows] = seconds if known is None else known + _FADE_S * (seconds - known)

    def size(self, answers: int, hits: Sequence[float], most: int) -> int:
        """How many tokens to guess for each answer whose share of `hits` is given; 0 = none.

        answers: rows of the step without guesses. most: rows that may be added.
        """
        plain = self._step_s.get(answers)
        if plain is None or not hits:
            return 0
        best, chosen = _MARGIN * answers / plain, 0
        for size in (2, 4, 8, MOST):
            rows = answers + size * len(hits)
            if size * len(hits) > most:
                break
            seconds = self.seconds(rows)
            if seconds is None:
                if min(hits) >= _TRY_HITS and self._try():
                    return size
                continue
            # Each token counts only if all before it were right.
            tokens = answers + sum(h * (1 - h**size) / (1 - h) if h < 1 else size for h in hits)
            if tokens / seconds > best:
                best, chosen = tokens / seconds, size
        return chosen

    def seconds(self, rows: int) -> float | None:
        """Of a step of so many rows: as measured, or between two that were; None beyond them."""
        known = self._step_s.get(rows)
        if known is not None:
            return known
        below = max((r for r in self._step_s if r < rows), default=None)
        above = min((r for r in self._step_s if r > rows), default=None)
        if below is None or above is None:
            return None
        share = (rows - below) / (above - below)
        return self._step_s[below] + share * (self._step_s[above] - self._step_s[below])

    def _try(self) -> bool:
        self._untried += 1
        return self._untried % _TRY_EVERY == 1
