"""The workers as the scheduler sees them: their states, and every step from one to the next.

Each step is a method that changes the state, keeps the budget and the indexes in line, and says
with an action what has to be done about it. Who takes which step when is the scheduler's to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from uml.supervisor.budget import Budget, Bytes
from uml.supervisor.cores import divide
from uml.supervisor.states import (
    Action,
    Grant,
    Kill,
    Load,
    Need,
    Prepare,
    SetTimer,
    Spawn,
    State,
    Tell,
    Threads,
    Waiter,
    WorkerState,
)

#: States of a worker that does not serve yet.
COMING = (State.STARTING, State.STANDBY, State.LOADING)


class Fleet:
    """Owner of worker states. do: takes the actions. freed: is told that a worker's room may be
    had, now or soon. cores: that all share, None = they are not counted."""

    def __init__(
        self,
        budget: Budget,
        do: Callable[[Action], None],
        freed: Callable[[WorkerState], None],
        cores: int | None = None,
    ) -> None:
        self._budget, self._do, self._freed, self._cores = budget, do, freed, cores
        self._ids = itertools.count(1)
        self._workers: dict[str, WorkerState] = {}
        self._serving: dict[str, WorkerState] = {}
        self._running: dict[int, tuple[WorkerState, float]] = {}
        self._spares: dict[str, WorkerState] = {}
        self._expected: dict[str, Need] = {}
        self._computing: dict[str, WorkerState] = {}

    @property
    def workers(self) -> Mapping[str, WorkerState]:
        return self._workers

    @property
    def expected(self) -> Mapping[str, Need]:
        """Backend -> its model that is likely to be wanted next."""
        return self._expected

    @property
    def serving(self) -> Mapping[str, WorkerState]:
        """Model -> the worker that serves or will serve it; one being killed does not."""
        return self._serving

    @property
    def works(self) -> bool:
        """Whether somebody answers or loads."""
        return any(w.busy or w.state is State.LOADING for w in self._workers.values())

    # --- coming ----------------------------------------------------------------------------

    def process(self, need: Need) -> WorkerState:
        """A process for `need`'s model: a warm standby of its backend, or a new one."""
        worker = self.spare(need.backend)
        if worker is None:
            worker = self.spawn(need.backend, need.process_bytes)
        else:
            self._budget.grant(worker.id, need.process_bytes)
        self._assign(worker, need)
        self._prepare(worker)
        return worker

    def spare(self, backend: str) -> WorkerState | None:
        """A process of `backend` that is nobody's yet."""
        return next((w for w in self._spares.values() if w.backend == backend), None)

    def spawn(self, backend: str, lease: Bytes, keep_alive_s: float = -1) -> WorkerState:
        """A process that imports its library, for nobody yet; keep_alive_s: as long as that."""
        worker = WorkerState(f"w{next(self._ids)}", backend, State.STARTING)
        worker.keep_alive_s = keep_alive_s
        self._workers[worker.id] = self._spares[worker.id] = worker
        self._budget.grant(worker.id, lease)
        self._do(Spawn(worker.id, backend))
        return worker

    def standby(self, worker: WorkerState, now: float) -> None:
        """Its library is imported."""
        worker.state, worker.used_at = State.STANDBY, now
        self._prepare(worker)
        self.idle_clock(worker)

    def _prepare(self, worker: WorkerState) -> None:
        """Let it begin with its model, or with the one that is expected."""
        need = worker.need or self._expected.get(worker.backend)
        if worker.state is State.STANDBY and need and worker.prepared != need.model:
            worker.prepared = need.model
            self._do(Prepare(worker.id, need.model))

    def lease(self, worker: WorkerState, need: Need, wants: Bytes) -> None:
        """The model's own lease takes the place of the process's."""
        worker.leased = True
        self._assign(worker, need)
        self._budget.grant(worker.id, wants)

    def load(self, worker: WorkerState, now: float) -> None:
        assert worker.need is not None and worker.leased
        worker.state, worker.load_at = State.LOADING, now
        self._computes(worker)
        worker.threads = worker.cores or 1
        self._do(Load(worker.id, worker.need, worker.threads))

    def ready(self, worker: WorkerState, slots: int, now: float) -> None:
        worker.state, worker.slots = State.READY, max(1, slots)
        worker.ready_at = worker.used_at = now
        self._rests(worker)
        self.idle_clock(worker)

    def _assign(self, worker: WorkerState, need: Need) -> None:
        worker.need, worker.keep_alive_s = need, need.keep_alive_s
        self._spares.pop(worker.id, None)
        self._serving[need.model] = worker

    # --- serving ---------------------------------------------------------------------------

    def grant(self, worker: WorkerState, waiter: Waiter, now: float) -> None:
        worker.keep_alive_s, worker.used_at = waiter.need.keep_alive_s, now
        if waiter.wants_slot:
            worker.busy.add(waiter.request)
            self._computes(worker)
            worker.alone = waiter.request if waiter.alone else None
            self._running[waiter.request] = worker, now
        else:
            self.idle_clock(worker)
        self._do(Grant(waiter.request, worker.id))

    def served(self, request: int) -> str | None:
        """The model that serves a granted request; None when its worker is gone or being killed."""
        worker, _ = self._running.get(request, (None, 0.0))
        serves = worker is not None and worker.state in (State.READY, State.DRAINING)
        return worker.model if worker and serves else None

    def finished(self, request: int, now: float) -> tuple[WorkerState | None, float]:
        """A granted request ended; the worker it ran on, and since when."""
        worker, since = self._running.pop(request, (None, now))
        if worker is None:
            return None, since
        worker.busy.discard(request)
        if worker.alone == request:
            worker.alone = None
        worker.used_at = now
        if not worker.busy:
            self._rests(worker)
        if worker.state is State.DRAINING and not worker.busy:
            self.kill(worker, worker.reason)
        self.idle_clock(worker)
        return worker, since

    def idle_clock(self, worker: WorkerState) -> None:
        """One timer per worker, set again only to fire earlier: a busy model sets none."""
        until = worker.until()
        if until is not None and (worker.idle_timer is None or until < worker.idle_timer):
            worker.idle_timer = until
            self._do(SetTimer(f"idle {worker.id}", until))

    def idle_over(self, worker: WorkerState, now: float) -> None:
        """Its timer fired: it goes, or was used meanwhile and has a new one."""
        worker.idle_timer = None
        until = worker.until()
        if until is not None and now >= until:
            self.kill(worker, f"idle for {worker.keep_alive_s:.0f} s")
        self.idle_clock(worker)

    # --- cores -----------------------------------------------------------------------------

    def _computes(self, worker: WorkerState) -> None:
        if self._cores is not None and worker.id not in self._computing:
            self._computing[worker.id] = worker
            self._divide()

    def _rests(self, worker: WorkerState) -> None:
        if self._computing.pop(worker.id, None):
            worker.cores = 0
            self._divide()

    def _divide(self) -> None:
        assert self._cores is not None
        workers = sorted(self._computing.values(), key=lambda w: -w.need.priority if w.need else 0)
        shares = divide(self._cores, [w.need.cores if w.need else None for w in workers])
        for worker, share in zip(workers, shares, strict=True):
            worker.cores = share

    def tell_cores(self) -> None:
        """Say to each worker that computes what it has now, where that is news. Called once an
        event is dealt with, so that nobody is told what holds for a moment only."""
        for worker in self._computing.values():
            if worker.threads != worker.cores:
                worker.threads = worker.cores
                self._do(Threads(worker.id, worker.cores))

    # --- going -----------------------------------------------------------------------------

    def leave(
        self, worker: WorkerState, reason: str, *, final: bool = False, force: bool = False
    ) -> None:
        """Send a worker away: at once when idle, not serving yet or forced, else by draining."""
        if worker.state is State.KILLING:
            return
        if force or not worker.busy:
            self.kill(worker, reason)
            return
        if worker.state is not State.DRAINING:
            worker.state, worker.reason = State.DRAINING, reason
            self._tell("worker.draining", worker, reason=reason, busy=len(worker.busy))
        worker.final = worker.final or final

    def evict(
        self, worker: WorkerState, reason: str, *, final: bool = False, force: bool = False
    ) -> None:
        """Send a worker away for another model: its own is likely to be wanted again."""
        self.leave(worker, reason, final=final, force=force)
        if worker.need:
            self._expected[worker.backend] = worker.need

    def expect_nothing(self, backend: str) -> None:
        """Nothing of `backend` is likely to be wanted, so no process is kept for it."""
        self._expected.pop(backend, None)
        if spare := self.spare(backend):
            self.kill(spare, "no standby is wanted any more")

    def reprieve(self, worker: WorkerState) -> bool:
        """Nobody wants its room any more: it serves on, unless it was to go anyway."""
        if worker.state is not State.DRAINING or worker.final:
            return False
        worker.state, worker.reason = State.READY, ""
        self._tell("worker.reprieved", worker)
        return True

    def kill(self, worker: WorkerState, reason: str) -> None:
        """The point of no return."""
        if worker.state is State.KILLING:
            return
        worker.state, worker.reason = State.KILLING, reason
        if self._spares.pop(worker.id, None):
            self._expected.pop(worker.backend, None)
        self._rests(worker)
        if worker.model and self._serving.get(worker.model) is worker:
            del self._serving[worker.model]
        self._do(Kill(worker.id, reason))
        self._freed(worker)

    def gone(self, worker_id: str, residue: Bytes) -> None:
        """Its tree is reaped; its lease ends but for what has not come back."""
        if worker := self._workers.pop(worker_id, None):
            for request in worker.busy:
                self._running.pop(request, None)
        if residue:
            self._budget.keep_as_residue(worker_id, residue)
        else:
            self._budget.free(worker_id)

    def _tell(self, event: str, worker: WorkerState, **fields: Any) -> None:
        self._do(Tell(event, {"worker": worker.id, "model": worker.model} | fields))
