"""A machine of numbers that runs a scheduling policy in simulated time.

The policy is whatever takes the scheduler's events and gives its actions: `Scheduler` itself, the
very code that runs in the supervisor, or one of `rivals`. Here processes start, load and die for as
long as the catalogue says, answers take what the arrival says, and everything is counted.
"""

from __future__ import annotations

import heapq
import itertools
import random
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from uml.supervisor import states
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.placement import Demand, Rules, place
from uml.supervisor.states import Action, Need

#: RAM of the simulated machine; a process without a model takes the second.
RAM = DeviceMemory("ram", "ram", 1 << 50, 1 << 50)
PROCESS_BYTES = 100 << 20
#: Until a new process has imported its library.
IMPORT_S = 0.3
_RULES = Rules(("cuda",))
#: Of many devices so many are looked at for a model, chosen at random.
_LOOKED_AT = 16


@dataclass(frozen=True)
class Model:
    """Seconds: of a load, of the kill until its memory is back. slots: answers at once."""

    name: str
    bytes: int
    load_s: float
    kill_s: float = 0.05
    slots: int = 4
    priority: int = 0


@dataclass(frozen=True)
class Arrival:
    """A request. at: seconds from the start. seconds: that its answer takes. client: who asks."""

    at: float
    model: int
    seconds: float
    client: int = -1


class Source(ABC):
    """Where requests come from: a stream of them, in order of time."""

    @abstractmethod
    def first(self) -> Iterator[Arrival]:
        """Those that come whatever is answered."""

    def after(self, arrival: Arrival, now: float) -> Arrival | None:
        """What the client of an answered request asks next; None: it is not the one to say."""
        return None


class Policy(Protocol):
    """The part of `Scheduler` that the machine talks to."""

    def on_measured(self, devices: Any, resident: Any, now: float) -> list[Action]: ...
    def on_request(self, request: int, need: Need, now: float) -> list[Action]: ...
    def on_hello(self, worker_id: str, now: float) -> list[Action]: ...
    def on_ready(self, worker_id: str, slots: int, now: float) -> list[Action]: ...
    def on_finished(self, request: int, now: float) -> list[Action]: ...
    def on_gone(self, worker_id: str, residue: Any, now: float) -> list[Action]: ...
    def on_timer(self, name: str, now: float) -> list[Action]: ...
    def worker_of(self, model: str) -> Any: ...
    def room(self, device: str) -> int: ...
    def price(self, device: str, count: int) -> tuple[float, ...]: ...


@dataclass
class Result:
    """waits: seconds from request to grant, in order of the grants. seconds: until the last answer.
    served: memory x time held by
    models while they answered; offered: memory x time there was. events: that the policy dealt
    with."""

    waits: array[float] = field(default_factory=lambda: array("d"))
    waits_of: dict[int, array[float]] = field(default_factory=dict)
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    kills: int = 0
    events: int = 0
    seconds: float = 0.0
    served: float = 0.0
    offered: float = 0.0
    still_waiting: int = 0

    @property
    def utilisation(self) -> float:
        return self.served / self.offered if self.offered else 0.0


class Machine:
    """devices: accelerators' memory in bytes."""

    def __init__(self, policy: Policy, models: Sequence[Model], devices: Iterable[int]) -> None:
        self._policy, self._models = policy, models
        self._index = {model.name: i for i, model in enumerate(models)}
        self._devices = [
            DeviceMemory(f"cuda{i}", "cuda", size, size) for i, size in enumerate(devices)
        ]
        self._caps = {d.name: d.total_bytes for d in self._devices} | {"ram": RAM.total_bytes}
        self._heap: list[tuple[float, int, str, Any]] = []
        self._order = itertools.count()
        self._timers: dict[str, float] = {}
        self._asked: dict[int, Arrival] = {}
        self._needs: dict[str, Need] = {}
        self._waiting: Counter[str] = Counter()
        self._worker_on: dict[int, str] = {}
        self._busy: dict[str, int] = {}
        self._busy_since: dict[str, float] = {}
        self._model_of: dict[str, int] = {}
        self._now, self._chance = 0.0, random.Random(0)
        self.result = Result()
        self._do(policy.on_measured([RAM, *self._devices], {}, 0.0))

    def run(self, source: Source, until: float | None = None) -> Result:
        """Until nothing happens any more, or for so many seconds."""
        self._source, arrivals = source, source.first()
        coming = next(arrivals, None)
        requests = itertools.count(1)
        while coming or self._heap:
            if coming and (not self._heap or coming.at <= self._heap[0][0]):
                self._now, event, about = coming.at, "asks", coming
                coming = next(arrivals, None)
            else:
                self._now, _, event, about = heapq.heappop(self._heap)
            if until is not None and self._now > until:
                self._now = until
                break
            self._happens(event, about, requests)
        found = self.result
        found.still_waiting = sum(self._waiting.values())
        found.offered = found.seconds * sum(d.total_bytes for d in self._devices)
        for worker in list(self._busy_since):
            self._rests(worker)
        return found

    def _happens(self, event: str, about: Any, requests: Iterator[int]) -> None:
        policy, now = self._policy, self._now
        self.result.events += 1
        match event:
            case "asks":
                request = next(requests)
                self._asked[request] = about
                model = self._models[about.model]
                self._waiting[model.name] += 1
                self._do(policy.on_request(request, self._need(model), now))
            case "hello":
                self._do(policy.on_hello(about, now))
            case "ready":
                self._do(policy.on_ready(about, self._models[self._model_of[about]].slots, now))
            case "answered":
                self._answered(about)
            case "gone":
                self._do(policy.on_gone(about, {}, now))
            case "timer":
                name, at = about
                if self._timers.get(name) == at:
                    del self._timers[name]
                    self._do(policy.on_timer(name, now))

    def _answered(self, request: int) -> None:
        self.result.answered += 1
        self.result.seconds = self._now
        worker = self._worker_on.pop(request)
        self._busy[worker] -= 1
        if not self._busy[worker]:
            self._rests(worker)
        arrival = self._asked.pop(request)
        self._do(self._policy.on_finished(request, self._now))
        self._next_of(arrival)

    def _next_of(self, arrival: Arrival) -> None:
        if following := self._source.after(arrival, self._now):
            self._soon(following.at - self._now, "asks", following)

    def _rests(self, worker: str) -> None:
        since = self._busy_since.pop(worker)
        self.result.served += (self._now - since) * self._models[self._model_of[worker]].bytes

    def _soon(self, delay: float, event: str, about: Any) -> None:
        heapq.heappush(self._heap, (self._now + delay, next(self._order), event, about))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case states.Grant():
                    self._grant(action)
                case states.Spawn():
                    self._soon(IMPORT_S, "hello", action.worker)
                case states.Load():
                    self.result.loads += 1
                    index = self._model_of[action.worker] = self._index[action.need.model]
                    self._soon(self._models[index].load_s, "ready", action.worker)
                case states.Kill():
                    self.result.kills += 1
                    index = self._model_of.get(action.worker, 0)
                    self._soon(self._models[index].kill_s, "gone", action.worker)
                case states.SetTimer():
                    self._timers[action.name] = action.at
                    self._soon(max(0.0, action.at - self._now), "timer", (action.name, action.at))
                case states.Refuse():
                    arrival = self._asked.pop(action.request)
                    self._waiting[self._models[arrival.model].name] -= 1
                    self.result.refused[action.error.code] += 1
                    self._next_of(arrival)

    def _grant(self, grant: states.Grant) -> None:
        arrival = self._asked[grant.request]
        self._waiting[self._models[arrival.model].name] -= 1
        wait = self._now - arrival.at
        self.result.waits.append(wait)
        self.result.waits_of.setdefault(arrival.model, array("d")).append(wait)
        self._worker_on[grant.request] = grant.worker
        if not self._busy.get(grant.worker):
            self._busy_since[grant.worker] = self._now
        self._busy[grant.worker] = self._busy.get(grant.worker, 0) + 1
        self._soon(arrival.seconds, "answered", grant.request)

    def _need(self, model: Model) -> Need:
        """Where the model goes is decided anew whenever nobody waits for it and it is not there."""
        known = self._needs.get(model.name)
        if known and (self._waiting[model.name] > 1 or self._policy.worker_of(model.name)):
            return known
        demand = Demand(layers_bytes=model.bytes, process_bytes=PROCESS_BYTES)
        devices = self._devices
        if len(devices) > _LOOKED_AT:
            devices = self._chance.sample(devices, _LOOKED_AT)
        room = {d.name: self._policy.room(d.name) for d in devices} | {"ram": RAM.total_bytes}
        placed = place(demand, devices, _RULES, self._caps, room, self._policy.price)
        assert placed is not None
        need = self._needs[model.name] = Need(
            model=model.name,
            backend="b",
            bytes=placed.bytes,
            process_bytes={"ram": PROCESS_BYTES},
            keep_alive_s=-1.0,
            priority=model.priority,
            load_s=model.load_s,
        )
        return need
