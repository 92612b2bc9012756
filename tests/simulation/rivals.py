"""The usual ways, to be beside: first come first served, and least recently used.

They are told the same and may do the same as `Scheduler`; what they lack is judgement. Each device
has a line of its own.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uml.protocol.errors import QueueFull
from uml.supervisor.budget import Budget, DeviceMemory
from uml.supervisor.states import Action, Grant, Kill, Limits, Load, Need, Refuse, Spawn, State


@dataclass
class _Worker:
    id: str
    need: Need
    state: State = State.STARTING
    slots: int = 1
    busy: set[int] = field(default_factory=set)
    used_at: float = 0.0


class Rival(ABC):
    """What both have in common: a model is loaded when there is room, and idle ones leave for it,
    the one unused for longest first."""

    def __init__(self, budget: Budget, limits: Limits) -> None:
        self._budget, self._limits = budget, limits
        self._ids = itertools.count(1)
        self._workers: dict[str, _Worker] = {}
        self._serving: dict[str, _Worker] = {}
        self._running: dict[int, _Worker] = {}
        self._lines: dict[str, deque[tuple[int, Need]]] = {}
        self._waiting = 0

    def worker_of(self, model: str) -> _Worker | None:
        return self._serving.get(model)

    def room(self, device: str) -> int:
        return self._budget.available(device)

    def price(self, device: str, count: int) -> tuple[float, ...]:
        """As `Scheduler.price`: both put models where it costs least."""
        holders = self._budget.holders(device)
        short = count - self.room(device)
        idle = [w for w in map(self._workers.__getitem__, holders) if _idle(w)]
        for worker in sorted(idle, key=lambda w: w.used_at):
            short -= holders[worker.id].bytes[device]
            if short <= 0:
                return (1.0, worker.used_at)
        return (2.0, float(len(self._lines.get(device, ()))))

    def on_measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Any], now: float
    ) -> list[Action]:
        self._budget.measured(devices, resident)
        return []

    def on_request(self, request: int, need: Need, now: float) -> list[Action]:
        if self._waiting >= self._limits.queue:
            return [Refuse(request, QueueFull("full"))]
        self._waiting += 1
        self._lines.setdefault(_device(need), deque()).append((request, need))
        return self._advance(need, now)

    def on_hello(self, worker_id: str, now: float) -> list[Action]:
        worker = self._workers[worker_id]
        worker.state = State.LOADING
        return [Load(worker_id, worker.need)]

    def on_ready(self, worker_id: str, slots: int, now: float) -> list[Action]:
        worker = self._workers[worker_id]
        worker.state, worker.slots, worker.used_at = State.READY, slots, now
        return self._advance(worker.need, now)

    def on_finished(self, request: int, now: float) -> list[Action]:
        worker = self._running.pop(request)
        worker.busy.discard(request)
        worker.used_at = now
        return self._advance(worker.need, now)

    def on_gone(self, worker_id: str, residue: Mapping[str, int], now: float) -> list[Action]:
        worker = self._workers.pop(worker_id)
        self._budget.free(worker_id)
        return self._advance(worker.need, now)

    def on_timer(self, name: str, now: float) -> list[Action]:
        return []

    def _advance(self, about: Need, now: float) -> list[Action]:
        out: list[Action] = []
        line = self._lines.get(_device(about))
        if line:
            self.advance(line, out.append, now)
        return out

    @abstractmethod
    def advance(
        self, line: deque[tuple[int, Need]], do: Callable[[Action], None], now: float
    ) -> None:
        """Serve whom it can of a device's line, and load for whom it may."""

    def _grant(self, request: int, worker: _Worker, now: float) -> Action:
        self._waiting -= 1
        worker.busy.add(request)
        worker.used_at = now
        self._running[request] = worker
        return Grant(request, worker.id)

    def _bring(self, need: Need, do: Callable[[Action], None]) -> None:
        """Load the model if there is room; else send idle ones away, if that makes room."""
        short = self._budget.missing(need.bytes)
        if not short:
            worker = _Worker(f"w{next(self._ids)}", need)
            self._workers[worker.id] = self._serving[need.model] = worker
            self._budget.grant(worker.id, need.bytes)
            do(Spawn(worker.id, need.backend))
            return
        (device,) = short
        holders = self._budget.holders(device)
        there = [self._workers[w] for w in holders]
        leaving = [w for w in there if w.state is State.KILLING]
        lacks = short[device] - sum(holders[w.id].bytes[device] for w in leaving)
        victims = []
        for worker in sorted(filter(_idle, there), key=lambda w: w.used_at):
            if lacks <= 0:
                break
            lacks -= holders[worker.id].bytes[device]
            victims.append(worker)
        for worker in victims if lacks <= 0 else ():
            worker.state = State.KILLING
            del self._serving[worker.need.model]
            do(Kill(worker.id, "evicted"))


class Fifo(Rival):
    """As llama-swap does: a loaded model serves all who ask for it; of the others, in order of
    arrival, each whose victims are idle is loaded."""

    blocks = False

    def advance(
        self, line: deque[tuple[int, Need]], do: Callable[[Action], None], now: float
    ) -> None:
        left: deque[tuple[int, Need]] = deque()
        for request, need in line:
            worker = self._serving.get(need.model)
            if worker and worker.state is State.READY and len(worker.busy) < worker.slots:
                do(self._grant(request, worker, now))
            else:
                left.append((request, need))
        line.clear()
        line.extend(left)
        # Only now, so that nobody is sent away whom somebody in the line has been waiting for.
        tried: set[str] = set()
        for _, need in left:
            if need.model in self._serving or need.model in tried or (self.blocks and tried):
                continue
            tried.add(need.model)
            self._bring(need, do)


class Lru(Fifo):
    """As Ollama does: the same, but while one model waits for room, those behind it wait, too."""

    blocks = True


def _idle(worker: _Worker) -> bool:
    return worker.state is State.READY and not worker.busy


def _device(need: Need) -> str:
    return next((d for d in need.bytes if d != "ram"), "ram")
