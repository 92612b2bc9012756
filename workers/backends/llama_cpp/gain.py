"""Whether guessed tokens pay (speculative decoding): pure.

A guess costs rows in the step that checks it, and rows are cheap on some machines (a GPU, a model
larger than the caches) and dear on others (a small model on two cores); a guess by a draft model
costs that model's time, too. So nothing is assumed: how long a step of so many rows takes is
measured, how often guesses are right is measured too, and a guess is made only where all together
promises more tokens per second. What was never measured, or not for a while, is tried now and then,
for a small share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Tokens guessed at once. With the answer's own, four rows or a multiple of it: measured on 2 cores
#: (SmolLM2, ms) 1 row 6.9, 2 14.1, 3 17.4, 4 19.6, 5 24.1; 7 30.2, 8 31.0, 9 34.5.
SIZES = (3, 7, 11)
MOST = SIZES[-1]
#: How fast what was measured fades: steps' times, guesses' hits.
_FADE_S, FADE_HITS = 0.2, 0.1
#: A guess has to promise so much more, for what the measuring itself gets wrong.
_MARGIN = 1.1
#: The share of the time that may go into trying; less where it came to nothing again and again.
_SHARE, _LEAST_SHARE, _FADE_SHARE = 0.02, 0.0025, 0.85
#: What is not spent on trials is kept, up to so many steps' time: they come one by one.
_PURSE = 64
#: Tokens over which it has to pay that a draft model first reads the text so far.
_AHEAD = 128


class Times:
    """How long a step of so many rows takes."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`."""
        known = self._step_s.get(rows)
        self._step_s[rows] = seconds if known is None else known + _FADE_S * (seconds - known)

    def seconds(self, rows: int) -> float | None:
        """Of a step of so many rows: as measured, or between two that were; None beyond them."""
        known = self._step_s.get(rows)
        if known is not None:
            return known
        below, above = self._below(rows), min((r for r in self._step_s if r > rows), default=None)
        if below is None or above is None:
            return None
        share = (rows - below) / (above - below)
        return self._step_s[below] + share * (self._step_s[above] - self._step_s[below])

    def at_most(self, rows: int) -> float:
        """The same; beyond what was measured as if each row more cost as much as those before."""
        known, below = self.seconds(rows), self._below(rows)
        return known or (self._step_s[below] * rows / below if below else 0.0)

    def at_least(self, rows: int) -> float:
        """Beyond what was measured, as if more rows cost nothing."""
        below = self._below(rows)
        return self._step_s[below] if below else 0.0

    def _below(self, rows: int) -> int | None:
        return max((r for r in self._step_s if r < rows), default=None)


class Offer(NamedTuple):
    """What a source of guesses has for a step. hits: how often it is right, for each answer that it
    can guess for. each_s: what a token for all of them takes; once_s: what comes before the first
    one. known: that is known without a trial."""

    hits: Sequence[float]
    each_s: float = 0.0
    once_s: float = 0.0
    known: bool = True


class Choice(NamedTuple):
    """offer: which one, by its place. size: tokens for each answer. trial: it is not known to pay;
    how many tokens the step is thought to win, its answers' own counted."""

    offer: int
    size: int
    trial: float = 0.0


class Gain:
    """Times of steps that only wrote answers, and what to make of offers. times: as far as they are
    known. always: take the last offer that can be had, whether it pays or not."""

    def __init__(self, times: Times | None = None, *, always: bool = False) -> None:
        self.times, self._always = times or Times(), always
        self._purse_s, self._share = 0.0, _SHARE
        #: What its tokens would take without a guess, while a trial's step runs.
        self._instead_s: float | None = None
        #: The rows of such a step when it did not pay before, else 0.
        self._again = 0

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`."""
        self.times.observe(rows, seconds)
        self._purse_s = min(self._purse_s + self._share * seconds, _PURSE * seconds)
        if self._instead_s is not None:
            self.spend(seconds - self._instead_s)
            if self._again and rows == self._again:
                self._purse_s = min(0.0, self._purse_s)  # not at once again
            self._instead_s = None

    def spend(self, seconds: float) -> None:
        """So much of the time went into a trial."""
        self._purse_s -= seconds

    def choose(self, answers: int, offers: Sequence[Offer], most: int) -> Choice | None:
        """What to guess in a step of so many `answers`, to which `most` rows may be added."""
        if self._always:
            able = [i for i, o in enumerate(offers) if 0 < SIZES[0] * len(o.hits) <= most]
            return Choice(able[-1], SIZES[0]) if able else None
        self._instead_s = None
        plain = self.times.seconds(answers)
        if plain is None:
            return None
        least = best = _MARGIN * answers / plain
        chosen, tried = None, list[tuple[float, bool, Choice]]()
        for place, offer in enumerate(offers):
            for size in SIZES:
                more = size * len(offer.hits)
                if not more or more > most:
                    break
                tokens = answers + sum(_expected(hits, size) for hits in offer.hits)
                own = size * offer.each_s + offer.once_s * tokens / answers / _AHEAD
                if offer.known and tokens / (own + plain) <= least:
                    continue  # not even where rows cost nothing
                seconds = self.times.seconds(answers + more)
                rate = tokens / (own + (seconds or self.times.at_least(answers + more)))
                if seconds is None or not chosen:
                    tried.append((rate, seconds is None, Choice(place, size, tokens)))
                if seconds is not None and rate > best:
                    best, chosen = rate, Choice(place, size)
        if chosen:
            self._share = _SHARE
        # What may pay is tried first, then what did not when it was last looked at.
        new = [(-trial.size, rate, trial) for rate, new, trial in tried if new and rate > best]
        again = [(0, rate, trial) for rate, _, trial in tried if not chosen]
        trial = max(new or again)[2] if new or again else None
        if trial is None:
            return chosen
        offer, instead = offers[trial.offer], plain * trial.trial / answers
        seconds = self.times.at_most(answers + trial.size * len(offer.hits))
        if seconds - instead + trial.size * offer.each_s + offer.once_s > self._purse_s:
            return chosen
        self._again = 0 if new else answers + trial.size * len(offer.hits)
        if self._again:
            self._share = max(_LEAST_SHARE, _FADE_SHARE * self._share)
        self._instead_s = instead
        return trial


def _expected(hits: float, size: int) -> float:
    """Tokens won: each counts only if all before it were right."""
    return hits * (1 - hits**size) / (1 - hits) if hits < 1 else size
