"""What is to be expected, from what was: how long a turn takes to come (for Retry-After), and
whether the clients of a model that has just become idle ask again at once.

Pure: it remembers what the scheduler tells it, a few figures per model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uml.supervisor.queues import Line, Queues
from uml.supervisor.states import Limits, Need, State, WorkerState

#: Bounds of what a client is told, in seconds.
_SOONEST_S, _LATEST_S = 1.0, 300.0
#: Taken for a load that was never measured.
_LOAD_S = 5.0
#: What a new measurement counts beside all earlier ones, and a new observation of habits.
_NEW, _NEW_HABIT = 0.2, 0.4
#: Below this chance that its clients ask again at once an idle model is not waited for.
_LIKELY = 0.25


@dataclass
class _Pace:
    """Seconds of a load and of an answer (moving averages), answers at once. again: how often it
    was asked for again within `linger_s` of becoming idle, at `idle_at`."""

    load_s: float | None = None
    answer_s: float | None = None
    slots: int = 1
    again: float = 1.0
    idle_at: float | None = None


class Forecast:
    """serving: the fleet's table. queues: who waits now."""

    def __init__(self, limits: Limits, serving: Mapping[str, WorkerState], queues: Queues) -> None:
        self._limits, self._serving, self._queues = limits, serving, queues
        self._paces: dict[str, _Pace] = {}

    def loaded(self, model: str, seconds: float, slots: int) -> None:
        pace = self._paces.setdefault(model, _Pace())
        pace.load_s, pace.slots = _mean(pace.load_s, seconds), slots

    def answered(self, model: str, seconds: float) -> None:
        pace = self._paces.setdefault(model, _Pace())
        pace.answer_s = _mean(pace.answer_s, seconds)

    def rests(self, model: str, now: float) -> None:
        """It has just become idle."""
        self._paces.setdefault(model, _Pace()).idle_at = now

    def asked(self, model: str, now: float) -> None:
        pace = self._paces.get(model)
        if pace is not None and pace.idle_at is not None:
            at_once = now - pace.idle_at <= self._limits.linger_s
            pace.again, pace.idle_at = _mean(pace.again, float(at_once), _NEW_HABIT), None

    def linger_s(self, model: str) -> float:
        """How long after its last answer it is left in place for its clients' next request."""
        pace = self._paces.get(model)
        likely = pace is None or pace.again >= _LIKELY
        return self._limits.linger_s if likely else 0.0

    def turn_s(self, need: Need, wants: Mapping[str, int]) -> float:
        """Seconds until a request for `need` that comes now gets its turn. wants: the devices and
        places of it, for which others wait, too."""
        line = self._queues.lines.get(need.model)
        ahead = self._answers_s(line) if line else 0.0
        worker = self._serving.get(need.model)
        if worker is None or worker.state is not State.READY:
            ahead += self._load_s(need)
        if worker is None or not worker.leased:
            others = self._queues.waiting_for(wants) - {need.model}
            ahead += sum(self._turn_of(self._queues.lines[model]) for model in others)
        return min(_LATEST_S, max(_SOONEST_S, ahead))

    def _turn_of(self, line: Line) -> float:
        """Seconds that another model has the room, its load included."""
        worker = self._serving.get(line.model)
        if worker is not None and worker.state is State.READY:  # it has its room
            return 0.0
        stay = max(self._limits.min_residency_s, self._answers_s(line))
        return self._load_s(line.need) + min(self._limits.max_wait_s, stay)

    def _load_s(self, need: Need) -> float:
        """As measured by us, else before our time, else a guess."""
        pace = self._paces.get(need.model)
        if pace and pace.load_s is not None:
            return pace.load_s
        return _LOAD_S if need.load_s is None else need.load_s

    def _answers_s(self, line: Line) -> float:
        """Seconds to answer all who wait in a line, once its model is loaded."""
        pace = self._paces.get(line.model)
        if pace is None or pace.answer_s is None:
            return 0.0
        return len(line.waiters) / pace.slots * pace.answer_s


def _mean(old: float | None, new: float, weight: float = _NEW) -> float:
    return new if old is None else old + weight * (new - old)
