"""A machine made of numbers: carries out a scheduler's actions, one event at a time."""

from __future__ import annotations

from typing import Any

from uml.protocol.errors import UmlError
from uml.supervisor import states
from uml.supervisor.budget import Budget, DeviceMemory
from uml.supervisor.scheduler import Scheduler
from uml.supervisor.states import Need, State

MB = 1 << 20
PROCESS = 50 * MB


def need(model: str, size: int = 400 * MB, **extra: object) -> Need:
    return Need(
        model=model,
        backend=str(extra.pop("backend", "b")),
        bytes={"ram": size},
        process_bytes={"ram": PROCESS},
        **extra,  # type: ignore[arg-type]
    )


class World:
    """RAM of `total` bytes. Events are delivered only when the test says so."""

    def __init__(self, total: int = 1000 * MB, **limits: object) -> None:
        limits.setdefault("linger_s", 0.0)
        self.total, self.foreign, self.clock = total, 0, 0.0
        self.scheduler = Scheduler(Budget(), states.Limits(**limits))  # type: ignore[arg-type]
        self.granted: dict[int, str] = {}
        self.refused: dict[int, UmlError] = {}
        self.spawned: list[str] = []
        self.loaded: list[str] = []
        self.killed: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.timers: dict[str, float] = {}
        self.threads: dict[str, int] = {}
        self.said_threads: list[tuple[str, int]] = []
        self.resident: dict[str, int] = {}
        self.measure()

    def do(self, actions: list[states.Action]) -> None:
        for action in actions:
            match action:
                case states.Spawn():
                    self.spawned.append(action.worker)
                    self.resident[action.worker] = PROCESS
                case states.Load():
                    self.loaded.append(action.worker)
                    self.threads[action.worker] = action.threads
                    self.resident[action.worker] = action.need.bytes["ram"]
                case states.Threads():
                    self.threads[action.worker] = action.threads
                    self.said_threads.append((action.worker, action.threads))
                case states.Kill():
                    self.killed.append((action.worker, action.reason))
                case states.Grant():
                    assert action.request not in self.granted
                    self.granted[action.request] = action.worker
                case states.Refuse():
                    assert action.request not in self.granted
                    self.refused[action.request] = action.error
                case states.SetTimer():
                    self.timers[action.name] = action.at
                case states.Tell():
                    self.told.append(action.event)

    def free(self) -> int:
        return self.total - self.foreign - sum(self.resident.values())

    def measure(self) -> None:
        ram = DeviceMemory("ram", "ram", self.total, self.free())
        resident = {w: {"ram": b} for w, b in self.resident.items()}
        self.do(self.scheduler.on_measured([ram], resident, self.clock))

    # --- events ---

    def ask(self, request: int, wanted: Need, **kind: Any) -> None:
        self.measure()
        self.do(self.scheduler.on_request(request, wanted, self.clock, **kind))

    def finish(self, request: int) -> None:
        self.do(self.scheduler.on_finished(request, self.clock))

    def hello(self, worker: str) -> None:
        self.measure()
        self.do(self.scheduler.on_hello(worker, self.clock))

    def ready(self, worker: str, slots: int = 2) -> None:
        self.measure()
        self.do(self.scheduler.on_ready(worker, slots, self.clock))

    def gone(self, worker: str, residue: int = 0) -> None:
        self.resident[worker] = residue
        if not residue:
            del self.resident[worker]
        self.measure()
        self.do(self.scheduler.on_gone(worker, {"ram": residue}, self.clock))

    def wait(self, seconds: float) -> None:
        """Let time pass, firing the timers that fall due, in order."""
        end = self.clock + seconds
        while due := [(at, name) for name, at in self.timers.items() if at <= end]:
            at, name = min(due)
            del self.timers[name]
            self.clock = max(self.clock, at)
            self.do(self.scheduler.on_timer(name, self.clock))
        self.clock = end

    # --- shortcuts ---

    def state(self, model: str) -> State | None:
        worker = self.scheduler.worker_of(model)
        return worker.state if worker else None

    def id_of(self, model: str) -> str:
        worker = self.scheduler.worker_of(model)
        assert worker is not None, model
        return worker.id

    def computing(self) -> dict[str, int]:
        """Threads of each model that computes, as its worker was told."""
        workers = self.scheduler.workers.values()
        found = {w.model or w.id: self.threads[w.id] for w in workers if w.cores}
        assert found == {w.model or w.id: w.cores for w in workers if w.cores}
        return found

    def bring(self, wanted: Need, request: int, slots: int = 2) -> str:
        """Ask for a model and let it come up undisturbed; its worker."""
        self.ask(request, wanted)
        worker = self.id_of(wanted.model)
        self.hello(worker)
        self.ready(worker, slots)
        assert self.granted[request] == worker
        return worker
