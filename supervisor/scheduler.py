"""Decides what runs: events in, actions out.

Pure: no clock, no I/O, no await. Every `on_*` method takes what happened (and `now`, seconds on
any monotonic clock) and returns the actions the pool has to carry out. Time comes back as
`on_timer` for timers that were asked for with `SetTimer`; a timer that is no longer true is
harmless, because its meaning is checked again when it fires.

A swap A->B: B claims what it lacks from A's pending release, B's process is spawned and imports
its library while A drains, and B's model is loaded only when A's bytes were seen back on the
device. The policy is told in docs/scheduling.md.

An event marks models and devices that it concerns; `_settle` then looks at the lines that wait
for those, in order of `Line.rank`, and at no others: its work does not grow with the number of
models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uml.protocol.errors import Cancelled, QueueFull, ShuttingDown, UmlError
from uml.supervisor.admission import NEVER, Admission
from uml.supervisor.breaker import Breaker
from uml.supervisor.budget import LOADED, Budget, Bytes, DeviceMemory
from uml.supervisor.claims import Claims
from uml.supervisor.fleet import COMING, Fleet
from uml.supervisor.queues import Line, Queues
from uml.supervisor.states import (
    Action,
    Limits,
    Need,
    Refuse,
    SetTimer,
    State,
    Waiter,
    WorkerState,
)


class Scheduler:
    """Owner of the fleet, the queues, the claims and the budget."""

    def __init__(self, budget: Budget, limits: Limits | None = None) -> None:
        self.budget = budget
        self.limits = limits or Limits()
        if self.limits.max_loaded:
            budget.places[LOADED] = self.limits.max_loaded
        self.breaker = Breaker()
        self._out: list[Action] = []
        self._touched: set[str] = set()
        self._models: set[str] = set()
        self._queues = Queues()
        self._fleet = Fleet(budget, self._out.append, self._freed, self.limits.cores)
        self._claims = Claims(budget, self._fleet.workers, self._fleet.serving)
        self._admission = Admission(budget, self.limits, self._fleet, self._queues, self._claims)
        self._closing = False

    # --- reading ---------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[str, WorkerState]:
        return self._fleet.workers

    def worker_of(self, model: str) -> WorkerState | None:
        """The worker that serves or will serve `model`; one being killed does not count."""
        return self._fleet.serving.get(model)

    def waiting(self) -> dict[str, int]:
        return {model: len(line.waiters) for model, line in self._queues.lines.items()}

    def line(self, model: str) -> list[int]:
        """Requests that wait for `model`, the next one first."""
        line = self._queues.lines.get(model)
        return list(line.waiters) if line else []

    def plan(self, need: Need, *, swap: bool = False) -> tuple[bool, list[dict[str, Any]], str]:
        """What `need` would set off: (possible, who leaves, why not). Changes nothing."""
        return self._admission.plan(need, swap=swap)

    # --- requests --------------------------------------------------------------------------

    def on_request(
        self,
        request: int,
        need: Need,
        now: float,
        *,
        wants_slot: bool = True,
        urgent: bool = False,
        rerun_since: float | None = None,
    ) -> list[Action]:
        """Somebody wants `need.model`. urgent: a person's own load or swap: it does not wait for
        newer work of other models, and a model that backs off is tried at once. rerun_since: it
        came then, and the worker it ran in died, perhaps of it: it keeps its place, and runs with
        no other beside it."""
        if self._closing:
            return [Refuse(request, ShuttingDown("the supervisor is shutting down"))]
        rerun, since = rerun_since is not None, now if rerun_since is None else rerun_since
        if len(self._queues) >= self.limits.queue and not rerun:
            return [
                Refuse(
                    request,
                    QueueFull(
                        f"{self.limits.queue} requests are waiting already; try again later",
                        retry_after_s=self.limits.max_wait_s,
                    ),
                )
            ]
        worker = self.worker_of(need.model)
        serves = worker and worker.need and worker.need.n_ctx >= need.n_ctx
        if not serves and not self.budget.fits_empty(need.bytes):
            return [Refuse(request, self._admission.does_not_fit(need))]
        if urgent:
            self.breaker.forget(need.model)
        self._queues.join(
            Waiter(request, need, since, wants_slot, urgent, alone=rerun),
            self._admission.wants(need),
        )
        self._serve(need.model, now)
        self._models.add(need.model)
        return self._settle(now)

    def on_abandoned(self, request: int, now: float) -> list[Action]:
        """A waiting request's client went away."""
        line = self._queues.leave(request)
        if line is not None and not line.waiters:
            self._give_up(line, "nobody waits for it any more", now)
        return self._settle(now)

    def on_finished(self, request: int, now: float) -> list[Action]:
        """A granted request ended, however."""
        worker = self._fleet.finished(request, now)
        if worker is not None and worker.model:
            if worker.state is State.READY:
                self.breaker.forget(worker.model)
            self._serve(worker.model, now)
            self._freed(worker)
        return self._settle(now)

    # --- workers ---------------------------------------------------------------------------

    def on_hello(self, worker_id: str, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.state is State.STARTING:
            worker.state = State.STANDBY
            if worker.model:
                self._models.add(worker.model)
        return self._settle(now)

    def on_ready(self, worker_id: str, slots: int, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.model and worker.state is State.LOADING:
            self._fleet.ready(worker, slots, now)
            self._serve(worker.model, now)
            self._freed(worker)
            for backend in self.limits.standby:
                self._out.append(SetTimer(f"standby {backend}", now + self.limits.standby_delay_s))
        return self._settle(now)

    def on_failed(
        self, worker_id: str, error: UmlError, now: float, *, died: bool = False
    ) -> list[Action]:
        """The load failed, or the process ended or hung on its own: `error` says why. died: it did
        not say itself why, so who waits for the load and saw none die yet gets a second one."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is State.KILLING:
            return []
        loading, line = worker.state in COMING, self._queues.lines.get(worker.model or "")
        guilty = worker.alone is not None  # the request, not the model
        self._fleet.kill(worker, error.message)
        if worker.model:
            if not guilty and not (loading and died and self._spare(worker.model, error, now)):
                self.breaker.failed(worker.model, error, now)
            if line is not None and loading and not died:
                self._turn_away(line, error, now)
            self._models.add(worker.model)
        return self._settle(now)

    def on_gone(self, worker_id: str, residue: Mapping[str, int], now: float) -> list[Action]:
        """The whole tree is reaped; `residue` is what the devices have not given back."""
        if lease := self.budget.leases.get(worker_id):
            self._touched.update(lease.bytes)
        if worker := self.workers.get(worker_id):
            self._claims.gone(worker)
        self._fleet.gone(worker_id, {d: b for d, b in residue.items() if b > 0})
        return self._settle(now)

    def on_residue(self, worker_id: str, remaining: Mapping[str, int], now: float) -> list[Action]:
        """Residue was looked at again."""
        return self.on_gone(worker_id, remaining, now)

    def on_measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Bytes], now: float
    ) -> list[Action]:
        self.budget.measured(devices, resident)
        self._touched.update(self.budget.devices)
        return self._settle(now)

    # --- commands --------------------------------------------------------------------------

    def on_unload(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Unload a model: after its running answers, or at once with `force`."""
        worker = self.worker_of(model)
        if worker is not None:
            line = self._queues.lines.get(model)
            if line is not None and worker.state in COMING:
                error = Cancelled(f"{model} was unloaded while it was loading")
                self._turn_away(line, error, now)
            self._fleet.leave(worker, "unloaded", final=True, force=force)
        return self._settle(now)

    def on_make_way(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Everything that is not `model` and not pinned leaves (the first half of a swap)."""
        for worker in list(self.workers.values()):
            if not worker.need or worker.model == model or worker.need.pinned:
                continue
            if worker.state in (State.READY, State.DRAINING):
                self._fleet.leave(worker, f"makes way for {model}", final=True, force=force)
        return self._settle(now)

    def on_shutdown(self, now: float, *, force: bool = False) -> list[Action]:
        """Nothing new is admitted; waiting requests are refused, running ones may finish."""
        self._closing = True
        for line in list(self._queues.lines.values()):
            self._turn_away(line, ShuttingDown("the supervisor is shutting down"), now)
        for worker in list(self.workers.values()):
            self._fleet.leave(worker, "shutdown", final=True, force=force)
        return self._settle(now)

    def on_timer(self, name: str, now: float) -> list[Action]:
        kind, _, subject = name.partition(" ")
        if kind == "idle" and (worker := self.workers.get(subject)):
            self._fleet.idle_over(worker, now)
        elif kind == "room":
            self._models.add(subject)
        elif kind == "standby" and not self._closing:
            self._start_standby(subject)
        return self._settle(now)

    # --- deciding --------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Look at the lines that the event concerns; the actions that all of it came to."""
        while self._touched or self._models:
            models = self._models | self._queues.waiting_for(self._touched)
            self._touched, self._models = set(), set()
            queues = self._queues.lines
            lines = [queues[m] for m in models if m in queues]
            lines.sort(key=lambda line: line.rank(self.limits.priority_s))
            for line in lines:
                if queues.get(line.model) is line:
                    self._consider(line, now)
        self._fleet.tell_cores()
        out = self._out[:]
        self._out.clear()
        return out

    def _serve(self, model: str, now: float) -> None:
        """Grant what can be granted, first come first."""
        worker, line = self.worker_of(model), self._queues.lines.get(model)
        if line is None or worker is None or worker.state is not State.READY:
            return
        assert worker.need is not None
        for waiter in list(line.waiters.values()):
            if waiter.need.n_ctx > worker.need.n_ctx:
                if self._admission.could_fit(waiter.need):
                    reason = f"reload with a context of {waiter.need.n_ctx}"
                    self._fleet.leave(worker, reason, final=True)
                    return
                self._queues.leave(waiter.request)
                self._out.append(Refuse(waiter.request, self._admission.no_room(waiter.need)))
                continue
            if waiter.wants_slot and not worker.takes(waiter):
                return
            self._queues.leave(waiter.request)
            self._fleet.grant(worker, waiter, now)

    def _consider(self, line: Line, now: float) -> None:
        """Give the line's model its lease and a process, or set in motion what makes room."""
        need, worker = line.need, self.worker_of(line.model)
        if worker is not None and worker.state not in (State.STARTING, State.STANDBY):
            return
        if refused := self.breaker.refusal(need.model, now):
            self._turn_away(line, refused, now)
            return
        holds = worker is not None and worker.leased and worker.need
        if not holds or holds.n_ctx < need.n_ctx:
            short = self._admission.missing(need, worker.id if worker else None)
            if short:
                self._make_room(line, short, worker, now)
                return
            self._let_off(self._claims.drop(need.model), now)
            worker = worker or self._fleet.process(need)
            self._fleet.lease(worker, need, self._admission.wants(need))
        if worker is not None and worker.state is State.STANDBY:
            self._fleet.load(worker, now)

    def _make_room(self, line: Line, short: Bytes, worker: WorkerState | None, now: float) -> None:
        need = line.need
        victims, later = self._admission.victims(line, short, now)
        if victims is None and not self._admission.could_fit(need):
            if not self._admission.moving(short):
                self._turn_away(line, self._admission.no_room(need), now)
            return
        if victims is None:
            if later < NEVER:
                self._out.append(SetTimer(f"room {need.model}", later))
        else:
            wants = self._admission.wants(need)
            self._let_off(self._claims.make(need.model, wants, victims), now)
            for victim in victims:
                self._fleet.leave(self.workers[victim], f"evicted for {need.model}")
        early = victims is not None or not self._somebody_imports(short)
        if worker is None and early and self._admission.process_fits(need):
            # Import the library while the victims leave; the model's bytes wait for theirs.
            self._fleet.process(need)

    def _somebody_imports(self, things: Iterable[str]) -> bool:
        """A process waits already for room that somebody has not agreed to leave yet."""
        models = self._queues.waiting_for(things)
        coming = (w for m in models if (w := self.worker_of(m)) and w.state in COMING)
        return any(not w.leased and not self._claims.get(w.model or "") for w in coming)

    def _start_standby(self, backend: str) -> None:
        mine = [w for w in self.workers.values() if w.backend == backend]
        example = next((w.need for w in mine if w.need), None)
        if example is None or self._fleet.spare(backend) or len(self._queues):
            return
        if self._admission.process_fits(example):
            self._fleet.spawn(backend, example.process_bytes)

    def _let_off(self, workers: Iterable[WorkerState], now: float) -> None:
        """Nobody claims their room any more: those that drain serve on."""
        for worker in workers:
            self._freed(worker)
            if self._fleet.reprieve(worker) and worker.model:
                self._serve(worker.model, now)

    def _freed(self, worker: WorkerState) -> None:
        """`worker`'s room may be had, now or soon: who waits for such is looked at."""
        if lease := self.budget.leases.get(worker.id):
            self._touched.update(lease.bytes)

    def _turn_away(self, line: Line, error: UmlError, now: float) -> None:
        for waiter in self._queues.dissolve(line.model):
            self._out.append(Refuse(waiter.request, error))
        self._give_up(line, error.message, now)

    def _spare(self, model: str, error: UmlError, now: float) -> bool:
        """A load died: refuse who saw that happen before; whether there was nobody of that kind."""
        line = self._queues.lines.get(model)
        waiters = list(line.waiters.values()) if line else []
        seen = [waiter for waiter in waiters if waiter.deaths]
        for waiter in waiters:
            waiter.deaths += 1
        for waiter in seen:
            self._queues.leave(waiter.request)
            self._out.append(Refuse(waiter.request, error))
        if line is not None and not line.waiters:
            self._give_up(line, error.message, now)
        return not seen

    def _give_up(self, line: Line, reason: str, now: float) -> None:
        """Nobody waits in `line` any more: what was set in motion for it ends."""
        worker = self.worker_of(line.model)
        if worker is not None and worker.state in COMING:
            self._fleet.kill(worker, reason)
        self._touched.update(line.things)
        self._let_off(self._claims.drop(line.model), now)
