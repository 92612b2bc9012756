"""Requests on their way: who waits for a grant, and what runs again when its worker dies.

`Serving` asks the pool's scheduler for a worker, hands the task to `Calls` and sees it through.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from uml.protocol import messages
from uml.protocol.errors import Quarantined, Stalled, TaskNotSupported, UmlError, WorkerDied
from uml.protocol.tasks import Generate, Task
from uml.supervisor.calls import Calls, Sink
from uml.supervisor.readahead import ReadAhead
from uml.supervisor.states import Need, State
from uml.supervisor.usage import Request
from uml.supervisor.worker import Worker

if TYPE_CHECKING:
    from uml.supervisor.environments import Environments
    from uml.supervisor.needs import Needs
    from uml.supervisor.pool import Pool
    from uml.supervisor.registry import Model, Registry

#: A request that has seen this many workers die is not given a third.
_DEATHS = 2


@dataclasses.dataclass
class _Waiting:
    """Somebody waits for a grant."""

    model: str
    keep_alive_s: float | None
    options: dict[str, Any] | None
    granted: asyncio.Future[str]
    tell: Callable[[str, float | None, int], None]


class Serving:
    """Owner of running calls and of who waits. ignored: told of a worker that does not honour a
    cancel."""

    def __init__(
        self,
        pool: Pool,
        needs: Needs,
        environments: Environments,
        registry: Registry,
        ignored: Callable[[Worker], None],
    ) -> None:
        self._pool, self._needs, self._environments = pool, needs, environments
        self._registry = registry
        self.calls = Calls(ignored)
        self.read_ahead = ReadAhead()
        #: As they were when they were last asked for.
        self.models: dict[str, Model] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._ids = itertools.count(1)

    async def run(
        self,
        model: Model,
        task: Task,
        sink: Sink,
        *,
        keep_alive_s: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> messages.Done:
        """Do `task` on `model`, loading it if need be; output goes into `sink`.

        A request whose worker dies before any content was delivered is run again, and then alone:
        if the worker died of it, it takes nobody along, and is not given a third. Cancelling this
        coroutine cancels the request in the worker. Raises: UmlError.
        """
        usage = self._pool.usage
        counted = usage.request(model.id, task.name)
        try:
            done = await self._run(model, task, sink, keep_alive_s, options, counted)
        except asyncio.CancelledError:
            usage.cancelled(counted)
            raise
        except UmlError as e:
            usage.failed(counted, e)
            raise
        usage.finished(counted, done.usage, done.finish)
        return done

    async def _run(
        self,
        model: Model,
        task: Task,
        sink: Sink,
        keep_alive_s: float | None,
        options: dict[str, Any] | None,
        counted: Request,
    ) -> messages.Done:
        if model.facts and task.name not in model.facts.tasks:
            can = ", ".join(model.facts.tasks) or "nothing"
            raise TaskNotSupported(f"{model.id} cannot {task.name}; it can: {can}", param="model")
        if isinstance(task, Generate) and task.sampling.seed is None:
            # Fixed here, so that a rerun gives the same answer.
            seeded = dataclasses.replace(task.sampling, seed=random.getrandbits(31))
            task = dataclasses.replace(task, sampling=seeded)
        deaths = 0
        while True:
            request, worker = await self.acquire(
                model,
                keep_alive_s,
                options,
                tell=sink.waiting,
                wants_slot=True,
                rerun_since=counted.came_at if deaths else None,
            )
            if self.leaves(worker):  # it died between the grant and now
                self._finished(request)
                continue
            counted.granted_at = self._pool.now()
            call = self.calls.start(worker, task, sink, partial(self._finished, request))
            call.late = lambda done: self._pool.usage.late(counted, done.usage)
            try:
                done = await asyncio.shield(call.future)
                counted.first_at = call.first_at
                return done
            except asyncio.CancelledError:
                self.calls.cancel(call)
                raise
            except (WorkerDied, Stalled) as e:
                deaths += 1
                if not call.lost or (call.first_at and not sink.restart()):
                    raise
                if deaths >= _DEATHS:
                    self._pool.events.emit("request.quarantined", "error", model=model.id)
                    raise _quarantined(model, e) from e
                self._pool.events.emit("request.rerun", "warning", model=model.id, cause=e.message)

    async def acquire(
        self,
        model: Model,
        keep_alive_s: float | None,
        options: dict[str, Any] | None,
        *,
        tell: Callable[[str, float | None, int], None],
        wants_slot: bool,
        urgent: bool = False,
        rerun_since: float | None = None,
    ) -> tuple[int, Worker]:
        """Wait until a worker may serve; (request number, worker). The last three: see
        `Scheduler.on_request`. Raises: UmlError."""
        pool, model = self._pool, self._registry.current(model)
        serving = pool.scheduler.worker_of(model.id)
        if serving and serving.need and serving.state is State.READY:
            need = self._needs.again(serving.need, model, keep_alive_s, options)
        else:
            need = self._needs.need(model, keep_alive_s, options)
        self.models[model.id] = model
        request = next(self._ids)
        granted = asyncio.get_running_loop().create_future()
        waiting = _Waiting(model.id, keep_alive_s, options, granted, tell)
        self._waiting[request] = waiting
        if need.n_ctx > (serving.need.n_ctx if serving and serving.need else -1):
            self._environments.python(need.backend)  # not installed: say so before anything
            pool.measure()
        try:
            pool.feed(
                pool.scheduler.on_request(
                    request,
                    need,
                    pool.now(),
                    wants_slot=wants_slot,
                    urgent=urgent,
                    rerun_since=rerun_since,
                )
            )
            if not waiting.granted.done():
                self.tell(model.id, last=True)
                if serving is None and pool.scheduler.line(model.id) == [request]:
                    room = pool.machine.snapshot()[0].free_bytes
                    waits = partial(self._waits_for_room, model.id)
                    self.read_ahead.soon(model.file.paths, room, waits)
            return request, pool.crew.workers[await waiting.granted]
        except asyncio.CancelledError:
            granted = waiting.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._finished(request)
            else:
                pool.feed(pool.scheduler.on_abandoned(request, pool.now()))
            raise
        finally:
            self._waiting.pop(request, None)

    def _waits_for_room(self, model: str) -> bool:
        worker = self._pool.scheduler.worker_of(model)
        return bool(self._pool.scheduler.line(model)) and not (worker and worker.leased)

    def grant(self, request: int, worker: str) -> None:
        """The scheduler gives `request` its worker; one that left meanwhile gives it back."""
        waiting = self._waiting.get(request)
        if waiting and not waiting.granted.done():
            waiting.granted.set_result(worker)
        else:
            self._finished(request)

    def refuse(self, request: int, error: UmlError) -> str | None:
        """Tell who waits why it gets nothing; the model that it waited for."""
        waiting = self._waiting.get(request)
        if not waiting or waiting.granted.done():
            return None
        waiting.granted.set_exception(error)
        return waiting.model

    def renewed(self, model_id: str) -> dict[int, Need | UmlError]:
        """What those who wait for a model need by the configuration as it is now, or why they
        cannot have it any more."""
        found: dict[int, Need | UmlError] = {}
        for request in self._pool.scheduler.line(model_id):
            waiting = self._waiting[request]
            try:
                model = self.models[model_id] = self._registry.find(model_id)
                found[request] = self._needs.need(model, waiting.keep_alive_s, waiting.options)
            except UmlError as e:
                found[request] = e
        return found

    def leaves(self, worker: Worker) -> bool:
        """Whether it is being killed already: what is begun there now would be cut."""
        state = self._pool.scheduler.workers.get(worker.id)
        return state is None or state.state is State.KILLING

    def _finished(self, request: int) -> None:
        self._pool.feed(self._pool.scheduler.on_finished(request, self._pool.now()))

    def tell(self, model: str, *, last: bool = False) -> None:
        """Say to all who wait for `model` how far it is, or only to the last who came."""
        pool = self._pool
        state = pool.scheduler.worker_of(model)
        word = state.state.value if state else "queued"
        vital = pool.crew.vitals.get(state.id) if state else None
        line = list(enumerate(pool.scheduler.line(model)))
        for position, request in line[-1:] if last else line:
            if waiting := self._waiting.get(request):
                waiting.tell(word, vital.fraction if vital else None, position)


def _quarantined(model: Model, last: WorkerDied | Stalled) -> UmlError:
    return Quarantined(
        f"two workers of {model.id} ended while they had this request, the second one this request "
        f"alone, so it is not given a third; the last: {last.message}",
        detail=last.detail,
    )
