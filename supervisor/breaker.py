"""Keeps a model that fails again and again from burning the machine: pure.

After `tries` failures within `window_s` it is refused for 10 s, then 20, ... up to 300; after
that one attempt is let through (half-open), and a finished request closes the matter. So does time:
a model that did not fail for twice the longest pause begins anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from uml.protocol.errors import UmlError, Unavailable

_FIRST_S = 10.0


@dataclass
class Failing:
    """error: the last one. until: when it is tried again. rounds: how often it was left alone
    since it last worked."""

    error: UmlError
    failures: list[float] = field(default_factory=list)
    rounds: int = 0
    until: float = 0.0


class Breaker:
    """Failures per model."""

    def __init__(self, tries: int = 3, window_s: float = 60.0, max_s: float = 300.0) -> None:
        self._tries, self._window_s, self._max_s = tries, window_s, max_s
        self._records: dict[str, Failing] = {}

    def failed(self, model: str, error: UmlError, now: float) -> None:
        record = self._records.get(model)
        if record is None or now - record.until > 2 * self._max_s:
            record = self._records[model] = Failing(error, until=now)
        record.error = error
        record.failures = [t for t in record.failures if now - t < self._window_s] + [now]
        # Half-open: the one attempt failed, so back off at once and longer.
        if len(record.failures) >= self._tries or record.rounds:
            record.until = now + min(self._max_s, _FIRST_S * 2**record.rounds)
            record.rounds += 1
            record.failures = []

    def forget(self, model: str) -> None:
        self._records.pop(model, None)

    def refusal(self, model: str, now: float) -> UmlError | None:
        """Why `model` is not tried now; None when it may be."""
        record = self.failing(now).get(model)
        if record is None:
            return None
        wait = math.ceil(record.until - now)
        return Unavailable(
            f"{model} failed again and again and is left alone for {wait} s; the last cause: "
            f"{record.error.message}",
            retry_after_s=wait,
        )

    def failing(self, now: float) -> dict[str, Failing]:
        """Models refused now."""
        return {m: r for m, r in self._records.items() if now < r.until}
