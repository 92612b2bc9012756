"""What follows when a worker is of no use any more: its calls end, it is killed, the model is left
alone or loaded with less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uml.protocol.errors import UmlError, WorkerDied
from uml.supervisor import states
from uml.supervisor.crashes import Crashes
from uml.supervisor.machine import oom_kills
from uml.supervisor.needs import Needs
from uml.supervisor.relief import OUT_OF_MEMORY
from uml.supervisor.states import Need, State

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool
    from uml.supervisor.worker import Worker


class Failures:
    """The door for all who see a worker fail. Owner of the reports (`crashes`)."""

    def __init__(self, pool: Pool, needs: Needs) -> None:
        self._pool, self._needs = pool, needs
        self.crashes = Crashes(pool)

    def failed(self, worker_id: str, error: UmlError, *, died: bool = False) -> None:
        """A worker is of no use any more: end its calls with `error` and kill it. died: it did not
        say itself why."""
        pool = self._pool
        worker = pool.crew.workers.get(worker_id)
        state = pool.scheduler.workers.get(worker_id)
        if worker is None or state is None or state.state is State.KILLING:
            return
        pool.events.emit(
            "worker.failed", "error", worker=worker_id, model=state.model, error=error.message
        )
        self.crashes.note(worker_id, error)
        if state.model and state.state is State.LOADING:
            pool.usage.load_failed(state.model)
        instead = self._degraded(state, error, died=died)
        actions = pool.scheduler.on_failed(worker_id, error, pool.now(), died=died, instead=instead)
        self._tell_failing(state.model)
        pool.serving.calls.on_worker_lost(worker, error)
        pool.feed(actions)

    def _degraded(self, state: states.WorkerState, error: UmlError, *, died: bool) -> Need | None:
        """What to load instead, once, when memory ran out in a load."""
        pool = self._pool
        need, vital = state.need, pool.crew.vitals.get(state.id)
        if need is None or vital is None or state.state is not State.LOADING:
            return None
        killed = died and oom_kills() > vital.oom_kills
        if not killed and not OUT_OF_MEMORY.search(error.message):
            return None
        instead = self._needs.degrade(pool.serving.models[need.model], need)
        if instead is not None:
            pool.events.emit(
                "load.degraded",
                "warning",
                model=need.model,
                reason=f"memory ran out in the load: {error.message}",
                n_ctx=instead.n_ctx,
                n_gpu_layers=instead.options.get("n_gpu_layers"),
            )
        return instead

    def _tell_failing(self, model: str | None) -> None:
        """Say so when a model is left alone from now on."""
        pool = self._pool
        if found := pool.failing().get(model or ""):
            pool.events.emit(
                "model.failed",
                "error",
                model=model,
                retry_in_s=round(found.until - pool.now(), 1),
                reason=found.error.message,
            )

    def ignores_cancel(self, worker: Worker) -> None:
        self.failed(worker.id, WorkerDied("the worker did not honour a cancel"))
