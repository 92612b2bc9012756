"""What follows from an event: who is served, who comes in, who leaves for whom.

`Scheduler` takes an event in and marks the models and devices that it concerns; `settle` then looks
at the lines that wait for those, in order of `Line.rank`, and at no others: its work does not grow
with the number of models. Pure, like everything the scheduler is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from uml.protocol.errors import UmlError
from uml.supervisor.admission import NEVER, Admission
from uml.supervisor.breaker import Breaker
from uml.supervisor.budget import Budget, Bytes
from uml.supervisor.claims import Claims
from uml.supervisor.fleet import COMING, Fleet
from uml.supervisor.forecast import Forecast
from uml.supervisor.queues import Line, Queues
from uml.supervisor.states import (
    Action,
    Limits,
    Need,
    Refuse,
    SetTimer,
    State,
    WorkerState,
)


class Decisions:
    """Owner of the queues, the claims and the breaker; it alone moves the fleet for them. fleet:
    built with `freed` of this."""

    def __init__(self, budget: Budget, limits: Limits) -> None:
        self.budget, self.limits = budget, limits
        self.breaker = Breaker()
        self.queues = Queues()
        self._out: list[Action] = []
        self._touched: set[str] = set()
        self._models: set[str] = set()
        self.fleet = Fleet(budget, self._out.append, self.freed, limits.cores)
        self.claims = Claims(budget, self.fleet.workers, self.fleet.serving)
        self.forecast = Forecast(limits, self.fleet.serving, self.queues)
        self.admission = Admission(
            budget, limits, self.fleet, self.queues, self.claims, self.forecast
        )

    def do(self, action: Action) -> None:
        """One more action that the event comes to."""
        self._out.append(action)

    def look_at(self, model: str | None) -> None:
        """The event concerns `model`'s line."""
        if model:
            self._models.add(model)

    def touch(self, things: Iterable[str]) -> None:
        """The event concerns who waits for these devices and places."""
        self._touched.update(things)

    def settle(self, now: float) -> list[Action]:
        """Look at the lines that the event concerns; the actions that all of it came to."""
        while self._touched or self._models:
            models = self._models | self.queues.waiting_for(self._touched)
            self._touched, self._models = set(), set()
            queues = self.queues.lines
            lines = [queues[m] for m in models if m in queues]
            lines.sort(key=lambda line: line.rank(self.limits.priority_s))
            for line in lines:
                if queues.get(line.model) is line:
                    self._consider(line, now)
        self.fleet.tell_cores()
        out = self._out[:]
        self._out.clear()
        return out

    def serve(self, model: str, now: float) -> None:
        """Grant what can be granted, first come first."""
        worker, line = self.fleet.serving.get(model), self.queues.lines.get(model)
        if line is None or worker is None or worker.state is not State.READY:
            return
        assert worker.need is not None
        for waiter in list(line.waiters.values()):
            if waiter.need.n_ctx > worker.need.n_ctx:
                if self.admission.could_fit(waiter.need):
                    reason = f"reload with a context of {waiter.need.n_ctx}"
                    self.fleet.leave(worker, reason, final=True)
                    return
                self.queues.leave(waiter.request)
                self._out.append(Refuse(waiter.request, self.admission.no_room(waiter.need)))
                continue
            if waiter.wants_slot and not worker.takes(waiter):
                return
            self.queues.leave(waiter.request)
            self.fleet.grant(worker, waiter, now)

    def _consider(self, line: Line, now: float) -> None:
        """Give the line's model its lease and a process, or set in motion what makes room."""
        need, worker = line.need, self.fleet.serving.get(line.model)
        if worker is not None and worker.state not in (State.STARTING, State.STANDBY):
            return
        if refused := self.breaker.refusal(need.model, now):
            self.turn_away(line, refused, now)
            return
        holds = worker is not None and worker.leased and worker.need
        if not holds or holds.n_ctx < need.n_ctx:
            short = self.admission.missing(need, worker.id if worker else None)
            if not short:
                self._let_off(self.claims.drop(need.model), now)
                worker = worker or self.fleet.process(need)
                self.fleet.lease(worker, need, self.admission.wants(need))
                self.queues.lacks(line, ())
            elif not holds or self.admission.could_fit(need):
                self._make_room(line, short, worker, now)
                return
            # Else it loads as what it was promised to be; who needs more is told so then.
        if worker is not None and worker.state is State.STANDBY:
            self.fleet.load(worker, now)

    def _make_room(self, line: Line, short: Bytes, worker: WorkerState | None, now: float) -> None:
        need = line.need
        self.queues.lacks(line, short)
        victims, later = self.admission.victims(line, short, now)
        if victims is None and not self.admission.could_fit(need):
            if not self.admission.moving(short):
                self.turn_away(line, self.admission.no_room(need), now)
            return
        if victims is None:
            if later < NEVER:
                self._out.append(SetTimer(f"room {need.model}", later))
        else:
            wants = self.admission.wants(need)
            self._let_off(self.claims.make(need.model, wants, victims), now)
            for victim in victims:
                self.fleet.evict(self.fleet.workers[victim], f"evicted for {need.model}")
        early = victims is not None or not self._somebody_imports(short)
        if worker is None and early and self.admission.process_fits(need.model, need.process_bytes):
            # Import the library while the victims leave; the model's bytes wait for theirs.
            self.fleet.process(need)

    def _somebody_imports(self, things: Iterable[str]) -> bool:
        """A process waits already for room that somebody has not agreed to leave yet."""
        models = self.queues.waiting_for(things)
        coming = (w for m in models if (w := self.fleet.serving.get(m)) and w.state in COMING)
        return any(not w.leased and not self.claims.get(w.model or "") for w in coming)

    def standby_soon(self, now: float) -> None:
        """Once things have calmed down, see to it that each backend has its process ready."""
        for backend in self.standbys():
            if self.fleet.spare(backend) is None:
                self._out.append(SetTimer(f"standby {backend}", now + self.limits.standby_delay_s))

    def standbys(self) -> dict[str, Bytes]:
        """Backends of which a process is kept ready, and what that may take."""
        expected = self.fleet.expected.items()
        found = dict(self.limits.standby)
        found |= {b: n.process_bytes for b, n in expected if b in found or self.limits.standby_auto}
        return found

    def standby_now(self, backend: str, now: float) -> None:
        process_bytes = self.standbys().get(backend)
        if process_bytes is None or self.fleet.spare(backend):
            return
        if self.fleet.works:
            return  # an import would slow the answers; when they end this is called again
        if len(self.queues):  # theirs is the room
            self.standby_soon(now)
        elif self.admission.process_fits("", process_bytes):
            stays_s = -1 if backend in self.limits.standby else self.limits.spare_s
            self.fleet.spawn(backend, process_bytes, stays_s)

    def _let_off(self, workers: Iterable[WorkerState], now: float) -> None:
        """Nobody claims their room any more: those that drain serve on."""
        for worker in workers:
            self.freed(worker)
            if self.fleet.reprieve(worker) and worker.model:
                self.serve(worker.model, now)

    def freed(self, worker: WorkerState) -> None:
        """`worker`'s room may be had, now or soon: who waits for such is looked at, and who waits
        for its model."""
        self.look_at(worker.model)
        if lease := self.budget.leases.get(worker.id):
            self._touched.update(lease.bytes)

    def turn_away(self, line: Line, error: UmlError, now: float) -> None:
        for waiter in self.queues.dissolve(line.model):
            self._out.append(Refuse(waiter.request, error))
        self.give_up(line, error.message, now)

    def spare(self, model: str, error: UmlError, now: float) -> bool:
        """A load died: refuse who saw that happen before; whether there was nobody of that kind."""
        line = self.queues.lines.get(model)
        waiters = list(line.waiters.values()) if line else []
        seen = [waiter for waiter in waiters if waiter.deaths]
        for waiter in waiters:
            waiter.deaths += 1
        for waiter in seen:
            self.queues.leave(waiter.request)
            self._out.append(Refuse(waiter.request, error))
        if line is not None and not line.waiters:
            self.give_up(line, error.message, now)
        return not seen

    def give_up(self, line: Line, reason: str, now: float) -> None:
        """Nobody waits in `line` any more: what was set in motion for it ends."""
        worker = self.fleet.serving.get(line.model)
        if worker is not None and worker.state in COMING:
            self.fleet.kill(worker, reason)
        self._touched.update(self.admission.wants(line.need))
        self._let_off(self.claims.drop(line.model), now)

    def renew(self, line: Line, needs: Mapping[int, Need | UmlError], now: float) -> None:
        """Who waits in `line` needs something else now, or gets nothing."""
        waiters = self.queues.dissolve(line.model)
        self.touch(line.things)
        self._let_off(self.claims.drop(line.model), now)
        for waiter in waiters:
            need = needs[waiter.request]
            if isinstance(need, UmlError):
                self.do(Refuse(waiter.request, need))
            else:
                waiter.need = need
                self.queues.join(waiter)
        self.serve(line.model, now)
        self.look_at(line.model)
