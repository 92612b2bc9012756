"""Decides what runs: events in, actions out.

Pure: no clock, no I/O, no await. Every `on_*` method takes what happened (and `now`, seconds on
any monotonic clock) and returns the actions the pool has to carry out. Time comes back as
`on_timer` for timers that were asked for with `SetTimer`; a timer that is no longer true is
harmless, because its meaning is checked again when it fires.

A swap A->B: B claims what it lacks from A's pending release, B's process is spawned and imports
its library while A drains, and B's model is loaded only when A's bytes were seen back on the
device. The policy is told in docs/scheduling.md.

Here is what each event changes at once; what follows from it is in `decisions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uml.protocol.errors import Cancelled, QueueFull, ShuttingDown, UmlError
from uml.supervisor.breaker import Breaker
from uml.supervisor.budget import LOADED, Budget, Bytes, DeviceMemory
from uml.supervisor.decisions import Decisions
from uml.supervisor.fleet import COMING
from uml.supervisor.states import (
    Action,
    Limits,
    Need,
    Refuse,
    State,
    Waiter,
    WorkerState,
)


class Scheduler:
    """The door to all that decides: one method per event."""

    def __init__(self, budget: Budget, limits: Limits | None = None) -> None:
        self.budget = budget
        self.limits = limits or Limits()
        if self.limits.max_loaded:
            budget.places[LOADED] = self.limits.max_loaded
        self._decide = Decisions(budget, self.limits)
        self._queues, self._fleet = self._decide.queues, self._decide.fleet
        self._admission = self._decide.admission
        self._closing = False

    # --- reading ---------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[str, WorkerState]:
        return self._fleet.workers

    @property
    def breaker(self) -> Breaker:
        return self._decide.breaker

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

    def room(self, device: str) -> int:
        """Bytes of a device that a newcomer may be promised now."""
        return self._admission.room(device)

    def price(self, device: str, count: int) -> tuple[float, ...]:
        """How dear room for so many bytes on a device is; see `Admission.price`."""
        return self._admission.price(device, count)

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
                        retry_after_s=self._admission.turn_s(need),
                    ),
                )
            ]
        worker = self.worker_of(need.model)
        serves = worker and worker.need and worker.need.n_ctx >= need.n_ctx
        if not serves and not self.budget.fits_empty(need.bytes):
            return [Refuse(request, self._admission.does_not_fit(need))]
        if urgent:
            self.breaker.forget(need.model)
        self._decide.forecast.asked(need.model, now)
        self._queues.join(Waiter(request, need, since, wants_slot, urgent, alone=rerun))
        self._decide.serve(need.model, now)
        self._decide.look_at(need.model)
        return self._decide.settle(now)

    def on_abandoned(self, request: int, now: float) -> list[Action]:
        """A waiting request's client went away."""
        line = self._queues.leave(request)
        if line is not None and not line.waiters:
            self._decide.give_up(line, "nobody waits for it any more", now)
        return self._decide.settle(now)

    def on_finished(self, request: int, now: float) -> list[Action]:
        """A granted request ended, however."""
        if model := self._fleet.served(request):
            self.breaker.forget(model)
        worker, since = self._fleet.finished(request, now)
        if worker is not None and worker.model:
            self._decide.forecast.answered(worker.model, now - since)
            if not worker.busy:
                self._decide.forecast.rests(worker.model, now)
                self._decide.standby_soon(now)
            self._decide.serve(worker.model, now)
            self._decide.freed(worker)
        return self._decide.settle(now)

    # --- workers ---------------------------------------------------------------------------

    def on_hello(self, worker_id: str, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.state is State.STARTING:
            self._fleet.standby(worker, now)
            if worker.model:
                self._decide.look_at(worker.model)
        return self._decide.settle(now)

    def on_ready(self, worker_id: str, slots: int, now: float) -> list[Action]:
        worker = self.workers.get(worker_id)
        if worker and worker.model and worker.state is State.LOADING:
            self._fleet.ready(worker, slots, now)
            self._decide.forecast.loaded(worker.model, now - worker.load_at, worker.slots)
            self._decide.serve(worker.model, now)
            self._decide.freed(worker)
            self._decide.standby_soon(now)
        return self._decide.settle(now)

    def on_failed(
        self,
        worker_id: str,
        error: UmlError,
        now: float,
        *,
        died: bool = False,
        instead: Need | None = None,
    ) -> list[Action]:
        """The load failed, or the process ended or hung on its own: `error` says why. died: it did
        not say itself why, so who waits for the load and saw none die yet gets a second one.
        instead: what to try for those who wait; the failure does not count then."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is State.KILLING:
            return []
        loading = worker.state in COMING
        guilty = worker.alone is not None  # the request, not the model
        self._fleet.kill(worker, error.message)
        if instead is not None:
            self._queues.change(instead)
            self._decide.look_at(instead.model)
        elif worker.need:
            spared = loading and died and self._decide.spare(worker.need.model, error, now)
            if not guilty and not spared:
                self.breaker.failed(worker.need.model, error, now)
            line = self._queues.lines.get(worker.need.model)
            if line is not None and loading and not died:
                self._decide.turn_away(line, error, now)
            self._decide.look_at(worker.model)
        return self._decide.settle(now)

    def on_gone(self, worker_id: str, residue: Mapping[str, int], now: float) -> list[Action]:
        """The whole tree is reaped; `residue` is what the devices have not given back."""
        if lease := self.budget.leases.get(worker_id):
            self._decide.touch(lease.bytes)
        if worker := self.workers.get(worker_id):
            self._decide.claims.gone(worker)
            self._decide.look_at(worker.model)
        self._fleet.gone(worker_id, {d: b for d, b in residue.items() if b > 0})
        return self._decide.settle(now)

    def on_residue(self, worker_id: str, remaining: Mapping[str, int], now: float) -> list[Action]:
        """Residue was looked at again."""
        return self.on_gone(worker_id, remaining, now)

    def on_measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Bytes], now: float
    ) -> list[Action]:
        self.budget.measured(devices, resident)
        self._decide.touch(self.budget.devices)
        return self._decide.settle(now)

    def on_started(self, now: float) -> list[Action]:
        """The machine was measured for the first time."""
        self._decide.standby_soon(now)
        return self._decide.settle(now)

    # --- commands --------------------------------------------------------------------------

    def on_unload(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Unload a model: after its running answers, or at once with `force`."""
        worker = self.worker_of(model)
        if worker is not None:
            line = self._queues.lines.get(model)
            if line is not None and worker.state in COMING:
                error = Cancelled(f"{model} was unloaded while it was loading")
                self._decide.turn_away(line, error, now)
            self._fleet.leave(worker, "unloaded", final=True, force=force)
            # Who unloads wants the memory, and not a quick way back.
            if worker.backend not in self.limits.standby:
                self._fleet.expect_nothing(worker.backend)
        return self._decide.settle(now)

    def on_retire(self, worker_id: str, reason: str, now: float) -> list[Action]:
        """A worker goes, after its running answers, for no other model's sake."""
        if worker := self.workers.get(worker_id):
            self._fleet.leave(worker, reason, final=True)
        return self._decide.settle(now)

    def on_make_way(self, model: str, now: float, *, force: bool = False) -> list[Action]:
        """Everything that is not `model` and not pinned leaves (the first half of a swap)."""
        for worker in list(self.workers.values()):
            if not worker.need or worker.model == model or worker.need.pinned:
                continue
            if worker.state in (State.READY, State.DRAINING):
                self._fleet.evict(worker, f"makes way for {model}", final=True, force=force)
        return self._decide.settle(now)

    def on_configured(
        self, limits: Limits, adjusted: Callable[[Need], Need], now: float
    ) -> list[Action]:
        """Other limits from now on. adjusted: a need with the pins, priorities and places that the
        configuration has now; nobody has to be loaded again for those."""
        self.limits.adopt(limits)
        self.budget.places.pop(LOADED, None)
        if limits.max_loaded:
            self.budget.places[LOADED] = limits.max_loaded
        for worker in self.workers.values():
            if worker.need is None:
                if worker.backend not in self._decide.standbys():
                    self._fleet.kill(worker, "no standby is wanted any more")
                continue
            worker.need = adjusted(worker.need)
            if worker.leased and worker.state is not State.KILLING:
                self.budget.grant(worker.id, self._admission.wants(worker.need))
        for line in list(self._queues.lines.values()):
            self._decide.renew(line, {r: adjusted(w.need) for r, w in line.waiters.items()}, now)
        self._decide.touch([*self.budget.devices, LOADED])
        self._decide.standby_soon(now)
        return self._decide.settle(now)

    def on_changed(
        self, model: str, needs: Mapping[int, Need | UmlError], reason: str, now: float
    ) -> list[Action]:
        """`model` is to be loaded otherwise: its worker leaves after its running answers, and who
        waits gets the next one. needs: of those who wait, or why they get nothing."""
        worker, line = self.worker_of(model), self._queues.lines.get(model)
        if worker is not None:
            self._fleet.leave(worker, reason, final=True)
        if line is not None:
            self._decide.renew(line, needs, now)
        return self._decide.settle(now)

    def on_shutdown(self, now: float, *, force: bool = False) -> list[Action]:
        """Nothing new is admitted; waiting requests are refused, running ones may finish."""
        self._closing = True
        for line in list(self._queues.lines.values()):
            self._decide.turn_away(line, ShuttingDown("the supervisor is shutting down"), now)
        for worker in list(self.workers.values()):
            self._fleet.leave(worker, "shutdown", final=True, force=force)
        return self._decide.settle(now)

    def on_timer(self, name: str, now: float) -> list[Action]:
        kind, _, subject = name.partition(" ")
        if kind == "idle" and (worker := self.workers.get(subject)):
            self._fleet.idle_over(worker, now)
        elif kind == "room":
            self._decide.look_at(subject)
        elif kind == "standby" and not self._closing:
            self._decide.standby_now(subject, now)
        return self._decide.settle(now)
