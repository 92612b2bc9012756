"""A stopwatch for deadlines of loops that look again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Looks are not further apart than this, but when the process itself was stopped.
_BETWEEN_S = 0.5


class Patience:
    """Counts the time in which somebody looked: a supervisor that was stopped meanwhile (SIGSTOP, a
    frozen container) has not waited, and what it waits for may have been stopped too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last, self._waited = clock, clock(), 0.0

    def waited(self) -> float:
        """Seconds so far. To be asked at each look."""
        now = self._clock()
        self._waited += min(now - self._last, _BETWEEN_S)
        self._last = now
        return self._waited
