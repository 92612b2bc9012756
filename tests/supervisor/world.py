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


def need(model: str, size: int | dict[str, int] = 400 * MB, **extra: object) -> Need:
    """size: of RAM, or per device."""
    return Need(
        model=model,
        backend=str(extra.pop("backend", "b")),
        bytes=size if isinstance(size, dict) else {"ram": size},
        process_bytes={"ram": PROCESS},
        **extra,  # type: ignore[arg-type]
    )


class World:
    """RAM of `total` bytes, and `others`. Events are delivered only when the test says so.

    resident: what each worker occupies. foreign: what strangers do, of RAM.
    """

    def __init__(
        self, total: int = 1000 * MB, others: dict[str, int] | None = None, **limits: object
    ) -> None:
        limits.setdefault("linger_s", 0.0)
        self.totals = {"ram": total, **(others or {})}
        self.foreign, self.clock = 0, 0.0
        self.scheduler = Scheduler(Budget(), states.Limits(**limits))  # type: ignore[arg-type]
        self.granted: dict[int, str] = {}
        self.refused: dict[int, UmlError] = {}
        self.spawned: list[str] = []
        self.prepared: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.killed: list[tuple[str, str]] = []
        self.model_of: dict[str, str | None] = {}
        self.told: list[str] = []
        self.timers: dict[str, float] = {}
        self.threads: dict[str, int] = {}
        self.said_threads: list[tuple[str, int]] = []
        self.resident: dict[str, dict[str, int]] = {}
        self.measure()

    def do(self, actions: list[states.Action]) -> None:
        for action in actions:
            match action:
                case states.Spawn():
                    self.spawned.append(action.worker)
                    self.resident[action.worker] = {"ram": PROCESS}
                case states.Prepare():
                    self.prepared.append((action.worker, action.model))
                case states.Load():
                    self.loaded.append(action.worker)
                    self.threads[action.worker] = action.threads
                    self.resident[action.worker] = dict(action.need.bytes)
                case states.Threads():
                    self.threads[action.worker] = action.threads
                    self.said_threads.append((action.worker, action.threads))
                case states.Kill():
                    self.killed.append((action.worker, action.reason))
                    worker = self.scheduler.workers.get(action.worker)
                    self.model_of[action.worker] = worker.model if worker else None
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

    @property
    def total(self) -> int:
        return self.totals["ram"]

    def used(self, device: str) -> int:
        """By workers."""
        return sum(held.get(device, 0) for held in self.resident.values())

    def free(self, device: str = "ram") -> int:
        foreign = self.foreign if device == "ram" else 0
        return self.totals[device] - foreign - self.used(device)

    def measure(self) -> None:
        devices = [
            DeviceMemory(name, "ram" if name == "ram" else "fake", total, self.free(name))
            for name, total in self.totals.items()
        ]
        self.do(self.scheduler.on_measured(devices, self.resident, self.clock))

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

    def gone(self, worker: str, residue: int = 0, device: str = "ram") -> None:
        """Its tree is reaped; `residue` bytes of `device` have not come back."""
        self.resident.pop(worker, None)
        if residue:
            self.resident[worker] = {device: residue}
        self.measure()
        self.do(self.scheduler.on_gone(worker, {device: residue}, self.clock))

    def residue_goes(self, worker: str) -> None:
        self.resident.pop(worker, None)
        self.measure()
        self.do(self.scheduler.on_residue(worker, {}, self.clock))

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

    def bring_instead(self, wanted: Need, request: int) -> str:
        """As `bring`, where others have to be killed first."""
        self.ask(request, wanted)
        for worker in list(self.scheduler.workers.values()):
            if worker.state is State.KILLING:
                self.gone(worker.id)
        worker_id = self.id_of(wanted.model)
        self.hello(worker_id)
        self.ready(worker_id)
        assert self.granted[request] == worker_id
        return worker_id
