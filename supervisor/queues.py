"""Who waits for which model, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from uml.supervisor.states import Need, Waiter


@dataclass
class Line:
    """Those who wait for one model, first come first. need: the widest that any of them has.
    things: devices and places of which it lacks something."""

    need: Need
    waiters: dict[int, Waiter] = field(default_factory=dict)
    things: set[str] = field(default_factory=set)
    urgent: int = 0

    @property
    def model(self) -> str:
        return self.need.model

    @property
    def head(self) -> Waiter:
        return next(iter(self.waiters.values()))

    def rank(self, priority_s: float) -> tuple[bool, float, int]:
        """Sorts lines: a person's own wish first, then by how long their first has waited, where
        each step of priority counts as `priority_s` seconds. So nobody waits for ever."""
        head = self.head
        return not self.urgent, head.since - priority_s * self.need.priority, head.request


class Queues:
    """A line per model. No line is empty."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self._model_of: dict[int, str] = {}
        self._on: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        """Waiting requests in all."""
        return len(self._model_of)

    def join(self, waiter: Waiter) -> Line:
        """`waiter` takes its place in its model's line, which is by time of arrival."""
        need = waiter.need
        line = self.lines.get(need.model)
        if line is None:
            line = self.lines[need.model] = Line(need)
        if need.n_ctx > line.need.n_ctx:
            line.need = need
        last = next(reversed(line.waiters.values()), waiter)
        line.waiters[waiter.request] = waiter
        if waiter.since < last.since:
            line.waiters = dict(sorted(line.waiters.items(), key=lambda item: item[1].since))
        line.urgent += waiter.urgent
        self._model_of[waiter.request] = need.model
        return line

    def change(self, need: Need) -> None:
        """All who wait for this model want it so from now on."""
        if line := self.lines.get(need.model):
            line.need = need
            for waiter in line.waiters.values():
                waiter.need = replace(need, keep_alive_s=waiter.need.keep_alive_s)

    def leave(self, request: int) -> Line | None:
        """`request` does not wait any more; the line it stood in, which may be empty now."""
        model = self._model_of.pop(request, None)
        if model is None:
            return None
        line = self.lines[model]
        line.urgent -= line.waiters.pop(request).urgent
        if not line.waiters:
            self._end(line)
        return line

    def dissolve(self, model: str) -> list[Waiter]:
        """All who waited for `model`, who do not any more."""
        line = self.lines.get(model)
        if line is None:
            return []
        for request in line.waiters:
            del self._model_of[request]
        self._end(line)
        return list(line.waiters.values())

    def lacks(self, line: Line, things: Iterable[str]) -> None:
        """These are what `line` waits for, as it was just found."""
        kept = set(things)
        for thing in line.things - kept:
            del self._on[thing][line.model]
        for thing in kept - line.things:
            self._on.setdefault(thing, {})[line.model] = None
        line.things = kept

    def waiting_for(self, things: Iterable[str]) -> set[str]:
        """Models that lack something of these devices and places."""
        return {model for thing in things for model in self._on.get(thing, ())}

    def _end(self, line: Line) -> None:
        del self.lines[line.model]
        for thing in line.things:
            del self._on[thing][line.model]
