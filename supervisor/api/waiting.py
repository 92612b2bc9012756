"""What is told of a request while it waits for its model."""

from __future__ import annotations


class Wait:
    """Takes the pool's `waiting` calls; says them as headers and as a stream's comments."""

    def __init__(self) -> None:
        self._state, self._position = "ready", 0
        self._fraction: float | None = None

    def waiting(self, state: str, fraction: float | None, position: int) -> None:
        self._state, self._fraction, self._position = state, fraction, position

    def restart(self, choices: range | None = None) -> bool:
        """See `Sink`; what goes out as it comes cannot be taken back."""
        return False

    def headers(self) -> dict[str, str]:
        found = {"X-Model-State": self._state}
        if self._position:
            found["X-Queue-Position"] = str(self._position)
        return found

    def comment(self) -> str:
        """`loading 42%`, `queued, 3 before this`, `working`."""
        if self._state == "ready":
            return "working"
        part = f" {self._fraction:.0%}" if self._fraction is not None else ""
        behind = f", {self._position} before this" if self._position else ""
        return f"{self._state}{part}{behind}"
