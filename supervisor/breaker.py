"""Keeps a model that fails again and again from burning the machine: pure.

After `tries` failures within `window_s` it is refused for 10 s, then 20, ... up to 300; after
that one attempt is let through (half-open), and a finished request closes the matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from uml.protocol.errors import UmlError, Unavailable


@dataclass
class _Record:
    failures: list[float] = field(default_factory=list)
    rounds: int = 0
    open_until: float = 0.0
    cause: str = ""


class Breaker:
    """Failures per model."""

    def __init__(self, tries: int = 3, window_s: float = 60.0, max_s: float = 300.0) -> None:
        self._tries, self._window_s, self._max_s = tries, window_s, max_s
        self._records: dict[str, _Record] = {}

    def failed(self, model: str, error: UmlError, now: float) -> None:
        record = self._records.setdefault(model, _Record())
        record.cause = error.message
        record.failures = [t for t in record.failures if now - t < self._window_s] + [now]
        # Half-open: the one attempt failed, so back off at once and longer.
        if len(record.failures) >= self._tries or record.rounds:
            record.open_until = now + min(self._max_s, 10.0 * 2**record.rounds)
            record.rounds += 1
            record.failures = []

    def forget(self, model: str) -> None:
        self._records.pop(model, None)

    def refusal(self, model: str, now: float) -> UmlError | None:
        """Why `model` is not tried now; None when it may be."""
        record = self._records.get(model)
        if record is None or now >= record.open_until:
            return None
        wait = math.ceil(record.open_until - now)
        return Unavailable(
            f"{model} failed again and again and is left alone for {wait} s; the last cause: "
            f"{record.cause}",
            retry_after_s=wait,
        )

    def failing(self, now: float) -> dict[str, str]:
        """Models refused now -> the last cause."""
        return {m: r.cause for m, r in self._records.items() if now < r.open_until}
