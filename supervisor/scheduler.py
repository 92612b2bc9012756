"""Decides what runs: events in, actions out.

Pure: no clock, no I/O, no await. Every `on_*` method takes what happened (and `now`, seconds on
any monotonic clock) and returns the actions the pool has to carry out. Time comes back as
`on_timer` for timers that were asked for with `SetTimer`; a timer that is no longer true is
harmless, because its meaning is checked again when it fires.

States of a worker: see `State`. A swap A->B: B claims its bytes plus A's pending release, B's
process is spawned and imports its library while A drains, and B's model is loaded only when A's
bytes were seen back on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from uml.protocol.errors import Cancelled, QueueFull, ShuttingDown, UmlError
from uml.supervisor.admission import Admission
from uml.supervisor.breaker import Breaker
from uml.supervisor.budget import Budget, Bytes, DeviceMemory
from uml.supervisor.states import (
    Action,
    Claim,
    Grant,
    Kill,
    Limits,
    Load,
    Need,
    Refuse,
    SetTimer,
    Spawn,
    State,
    Tell,
    Waiter,
    WorkerState,
)


class Scheduler:
    """Owner of worker states, queues, claims and the budget."""

    def __init__(self, budget: Budget, limits: Limits | None = None) -> None:
        self.budget = budget
        self.limits = limits or Limits()
        self.workers: dict[str, WorkerState] = {}
        self.breaker = Breaker()
        self._waiting: dict[str, dict[int, Waiter]] = {}
        self._claims: dict[str, Claim] = {}
        self._ids = itertools.count(1)
        self._closing = False
        self._admission = Admission(budget, self.limits, self.workers, self._claims)
        self._out: list[Action] = []

    # --- reading ---------------------------------------------------------------------------

    def worker_of(self, model: str) -> WorkerState | None:
        """The worker that serves or will serve `model`; one being killed does not count."""
        for worker in self.workers.values():
            if worker.model == model and worker.state is not State.KILLING:
                return worker
        return None

    def waiting(self) -> dict[str, int]:
        return {model: len(queue) for model, queue in self._waiting.items() if queue}

    def position(self, model: str, request: int) -> int:
        """How many requests for `model` stand before this one."""
        return next((i for i, rid in enumerate(self._waiting.get(model, {})) if rid == request), 0)

    def plan(self, need: Need, *, swap: bool = False) -> tuple[bool, list[dict[str, Any]], str]:
        """What `need` would set off: (possible, who leaves, why not). Changes nothing."""
        if not self.budget.fits_empty(need.bytes):
            return False, [], self._admission.does_not_fit(need).message
        serving = self.worker_of(need.model)
        loaded = serving is not None and serving.state is State.READY
        if swap:
            chosen = [
                w.id
                for w in self.workers.values()
                if w.need and w.model != need.model and not w.need.pinned
            ]
        elif loaded:
            return True, [], f"{need.model} is loaded"
        else:
            short = self._admission.missing(need, serving.id if serving else None)
            chosen = self._admission.victims(need, short, busy=True) or []
            if not self._admission.could_fit(need):
                return False, [], self._admission.no_room(need).message
        leases = self.budget.leases
        victims = [
            {
                "model": self.workers[w].model,
                "bytes": dict(leases[w].bytes) if w in leases else {},
                "busy": len(self.workers[w].busy),
            }
            for w in chosen
        ]
        return True, victims, ""

    # --- requests --------------------------------------------------------------------------

    def on_request(
        self, request: int, need: Need, now: float, *, wants_slot: bool = True, urgent: bool = False
    ) -> list[Action]:
        """Somebody wants `need.model`. urgent: a person's own load or swap: it does not wait for
        newer work of other models, and a model that backs off is tried at once."""
        if self._closing:
            return [Refuse(request, ShuttingDown("the supervisor is shutting down"))]
        if sum(map(len, self._waiting.values())) >= self.limits.queue:
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
        queue = self._waiting.setdefault(need.model, {})
        queue[request] = Waiter(request, need, now, wants_slot, urgent)
        return self._settle(now)

    def on_abandoned(self, request: int, now: float) -> list[Action]:
        """A waiting request's client went away."""
        for model, queue in self._waiting.items():
            if queue.pop(request, None) and not queue:
                worker = self.worker_of(model)
                if worker and worker.state in (State.STARTING, State.STANDBY, State.LOADING):
                    self._kill(worker, "nobody waits for it any more")
        return self._settle(now)

    def on_finished(self, request: int, now: float) -> list[Action]:
        """A granted request ended, however."""
        for worker in self.workers.values():
            if request in worker.busy:
                worker.busy.discard(request)
                worker.used_at = now
                if worker.state is State.READY and worker.model:
                    self.breaker.forget(worker.model)
                self._idle_clock(worker)
        return self._settle(now)

    # --- workers ---------------------------------------------------------------------------

    def on_hello(self, worker_id: str, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.state is State.STARTING:
            worker.state = State.STANDBY
        return self._settle(now)

    def on_ready(self, worker_id: str, slots: int, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.state is State.LOADING:
            worker.state, worker.slots, worker.used_at = State.READY, max(1, slots), now
            self._idle_clock(worker)
            for backend in self.limits.standby:
                self._do(SetTimer(f"standby {backend}", now + self.limits.standby_delay_s))
        return self._settle(now)

    def on_failed(
        self, worker_id: str, error: UmlError, now: float, *, died: bool = False
    ) -> list[Action]:
        """The load failed, or the process ended or hung on its own: `error` says why. died: it did
        not say itself why, so who waits for the load and saw none die yet gets a second one."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is State.KILLING:
            return []
        loading = worker.state in (State.STARTING, State.STANDBY, State.LOADING)
        if worker.need and not (loading and died and self._spare(worker.need.model, error)):
            self.breaker.failed(worker.need.model, error, now)
            if loading and not died:
                self._refuse_all(worker.need.model, error)
        self._kill(worker, error.message)
        return self._settle(now)

    def on_gone(self, worker_id: str, residue: Mapping[str, int], now: float) -> list[Action]:
        """The whole tree is reaped; `residue` is what the devices have not given back."""
        self.workers.pop(worker_id, None)
        left = {d: b for d, b in residue.items() if b > 0}
        if left:
            self.budget.keep_as_residue(worker_id, left)
        else:
            self.budget.free(worker_id)
        for claim in self._claims.values():
            claim.victims.discard(worker_id)
        return self._settle(now)

    def on_residue(self, worker_id: str, remaining: Mapping[str, int], now: float) -> list[Action]:
        """Residue was looked at again."""
        return self.on_gone(worker_id, remaining, now)

    def on_measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Bytes], now: float
    ) -> list[Action]:
        self.budget.measured(devices, resident)
        return self._settle(now)

    # --- commands --------------------------------------------------------------------------

    def on_unload(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Unload a model: after its running answers, or at once with `force`."""
        worker = self.worker_of(model)
        if worker is not None:
            if worker.state in (State.STARTING, State.STANDBY, State.LOADING):
                self._refuse_all(model, Cancelled(f"{model} was unloaded while it was loading"))
                self._kill(worker, "unloaded while loading")
            else:
                self._leave(worker, "unloaded", final=True, force=force)
        return self._settle(now)

    def on_make_way(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Everything that is not `model` and not pinned leaves (the first half of a swap)."""
        for worker in list(self.workers.values()):
            if not worker.need or worker.model == model or worker.need.pinned:
                continue
            if worker.state in (State.READY, State.DRAINING):
                self._leave(worker, f"makes way for {model}", final=True, force=force)
        return self._settle(now)

    def on_shutdown(self, now: float, *, force: bool = False) -> list[Action]:
        """Nothing new is admitted; waiting requests are refused, running ones may finish."""
        self._closing = True
        for model in list(self._waiting):
            self._refuse_all(model, ShuttingDown("the supervisor is shutting down"))
        for worker in list(self.workers.values()):
            self._leave(worker, "shutdown", final=True, force=force)
        return self._settle(now)

    def on_timer(self, name: str, now: float) -> list[Action]:
        kind, _, subject = name.partition(" ")
        if kind == "idle" and (worker := self.workers.get(subject)):
            until = worker.until()
            if until is not None and now >= until:
                self._kill(worker, f"idle for {worker.keep_alive_s:.0f} s")
        elif kind == "standby" and not self._closing:
            self._start_standby(subject)
        return self._settle(now)

    # --- deciding --------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Bring queues and workers in line: the one place where progress is decided."""
        for worker in list(self.workers.values()):
            if worker.state is State.DRAINING and not worker.busy:
                self._kill(worker, worker.reason)
        for model in list(self._waiting):
            # Before anybody is evicted: a model that just became ready serves who waits for it.
            self._serve(model, now)
        heads = [next(iter(queue.values())) for queue in self._waiting.values() if queue]
        wanted = {head.need.model for head in heads}
        for model in [m for m in self._claims if m not in wanted]:
            del self._claims[model]
        heads.sort(key=lambda w: (not w.urgent, -w.need.priority, w.since, w.request))
        for head in heads:
            current = self.worker_of(head.need.model)
            if current is None or current.state is State.STANDBY:
                self._admit(head.need.model, current, now)
        self._reprieve()
        out, self._out = self._out, []
        return out

    def _serve(self, model: str, now: float) -> None:
        worker, queue = self.worker_of(model), self._waiting[model]
        if worker is None or worker.need is None or worker.state is not State.READY:
            return
        for waiter in list(queue.values()):
            if waiter.need.n_ctx > worker.need.n_ctx:
                self._leave(worker, f"reload with a context of {waiter.need.n_ctx}", final=True)
                return
            if waiter.wants_slot and len(worker.busy) >= worker.slots:
                return
            del queue[waiter.request]
            worker.keep_alive_s, worker.used_at = waiter.need.keep_alive_s, now
            if waiter.wants_slot:
                worker.busy.add(waiter.request)
            else:
                self._idle_clock(worker)
            self._do(Grant(waiter.request, worker.id))

    def _admit(self, model: str, worker: WorkerState | None, now: float) -> None:
        """Give `model` its lease and a process, or set in motion what makes room for it."""
        need = max((w.need for w in self._waiting[model].values()), key=lambda n: n.n_ctx)
        if refused := self.breaker.refusal(model, now):
            self._turn_away(model, worker, refused)
            return
        short = self._admission.missing(need, worker.id if worker else None)
        if short or self._admission.too_many(model):
            self._make_room(need, short, worker, now)
            return
        self._claims.pop(model, None)
        worker = worker or self._process(need)
        worker.need = need
        self.budget.grant(worker.id, need.bytes)
        if worker.state is State.STANDBY:
            worker.state = State.LOADING
            self._do(Load(worker.id, need))

    def _make_room(self, need: Need, short: Bytes, worker: WorkerState | None, now: float) -> None:
        patient_until = self._patience(need.model)
        victims = self._admission.victims(need, short, busy=now >= patient_until)
        if victims is None:
            if not self._admission.could_fit(need):
                self._turn_away(need.model, worker, self._admission.no_room(need))
            elif now < patient_until:
                self._do(SetTimer(f"patience {need.model}", patient_until))
            return
        for victim in victims:
            self._leave(self.workers[victim], f"evicted for {need.model}")
        self._claims[need.model] = Claim(need, set(victims))
        if worker is None and self._admission.process_fits(need):
            # Import the library while the victims leave; the model's bytes wait for theirs.
            self._process(need)

    def _process(self, need: Need) -> WorkerState:
        """A process for `need`: a warm standby of its backend, or a new one."""
        for worker in self.workers.values():
            spare = worker.need is None and worker.state in (State.STARTING, State.STANDBY)
            if spare and worker.backend == need.backend:
                worker.need = need
                return worker
        return self._spawn(need.backend, need.process_bytes, need)

    def _start_standby(self, backend: str) -> None:
        mine = [w for w in self.workers.values() if w.backend == backend]
        example = next((w.need for w in mine if w.need), None)
        if example is None or any(w.need is None for w in mine) or any(self._waiting.values()):
            return
        if self._admission.process_fits(example):
            self._spawn(backend, example.process_bytes, None)

    def _spawn(self, backend: str, lease: Bytes, need: Need | None) -> WorkerState:
        worker = WorkerState(f"w{next(self._ids)}", backend, State.STARTING, need)
        self.workers[worker.id] = worker
        self.budget.grant(worker.id, lease)
        self._do(Spawn(worker.id, backend))
        return worker

    def _patience(self, model: str) -> float:
        """Until when busy models may stay although `model` waits for their room."""
        queue = self._waiting[model].values()
        if any(w.urgent for w in queue):
            return 0.0
        return min(w.since for w in queue) + self.limits.max_wait_s

    def _reprieve(self) -> None:
        """A draining worker whose room nobody claims any more serves on."""
        claimed = {v for claim in self._claims.values() for v in claim.victims}
        for worker in self.workers.values():
            if worker.state is State.DRAINING and not worker.final and worker.id not in claimed:
                worker.state = State.READY
                self._tell("worker.reprieved", worker)

    def _leave(
        self, worker: WorkerState, reason: str, *, final: bool = False, force: bool = False
    ) -> None:
        """Send a worker away: at once when idle, not serving yet or forced, else by draining."""
        if worker.state is State.KILLING:
            return
        if force or not worker.busy:
            self._kill(worker, reason)
            return
        if worker.state is not State.DRAINING:
            worker.state, worker.reason = State.DRAINING, reason
            self._tell("worker.draining", worker, reason=reason, busy=len(worker.busy))
        worker.final = worker.final or final

    def _kill(self, worker: WorkerState, reason: str) -> None:
        if worker.state is not State.KILLING:
            worker.state, worker.reason = State.KILLING, reason
            self._do(Kill(worker.id, reason))

    def _idle_clock(self, worker: WorkerState) -> None:
        until = worker.until()
        if until is not None:
            self._do(SetTimer(f"idle {worker.id}", until))

    def _turn_away(self, model: str, worker: WorkerState | None, error: UmlError) -> None:
        if worker:
            self._kill(worker, error.message)
        self._refuse_all(model, error)

    def _refuse_all(self, model: str, error: UmlError) -> None:
        self._claims.pop(model, None)
        for waiter in self._waiting.pop(model, {}).values():
            self._do(Refuse(waiter.request, error))

    def _spare(self, model: str, error: UmlError) -> bool:
        """A load died: refuse who saw that happen before; whether there was nobody of that kind."""
        queue = self._waiting.get(model, {})
        refused = [waiter.request for waiter in queue.values() if waiter.deaths]
        for request in refused:
            del queue[request]
            self._do(Refuse(request, error))
        for waiter in queue.values():
            waiter.deaths += 1
        return not refused

    def _tell(self, event: str, worker: WorkerState, **fields: Any) -> None:
        self._do(Tell(event, {"worker": worker.id, "model": worker.model} | fields))

    def _do(self, action: Action) -> None:
        self._out.append(action)
