"""What workers say, taken in: their `Listener`.

Each message moves what is known of the worker (`Vital`), and, where it is an event, the scheduler.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uml.protocol import WIRE_VERSION, messages
from uml.protocol.errors import LoadFailed, ProtocolError, UmlError, WorkerDied, from_wire
from uml.supervisor.states import State
from uml.supervisor.watch import Vital
from uml.supervisor.worker import Worker

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool
    from uml.supervisor.registry import Registry


class Hearing:
    """Holds no state of its own."""

    def __init__(self, pool: Pool, registry: Registry) -> None:
        self._pool, self._registry = pool, registry
        self._calls = pool.serving.calls

    def on_chunks(self, worker: Worker, items: list[Any]) -> None:
        vital = self._pool.crew.vitals.get(worker.id)
        if vital:
            vital.moved_at = worker.heard_at
            vital.pieces += len(items)
        self._calls.on_chunks(items)

    def on_message(self, worker: Worker, message: messages.Message) -> None:
        vital = self._pool.crew.vitals.get(worker.id)
        if vital is None:
            return
        match message:
            case messages.Done():
                vital.answered += 1
                if self._pool.footprints.due(worker.id):
                    self._pool.look_at_footprint(worker.id)
                self._calls.on_message(message)
            case messages.Beat():
                vital.beat(message, self._pool.now())
            case messages.Hello():
                if message.protocol[:1] != [WIRE_VERSION[0]]:
                    raise ProtocolError(f"speaks version {message.protocol}, we {WIRE_VERSION}")
                vital.hello_at = vital.moved_at = self._pool.now()
                vital.versions = message.versions
                self._pool.measure()
                self._pool.feed(self._pool.scheduler.on_hello(worker.id, self._pool.now()))
            case messages.Progress():
                vital.stage, vital.fraction = message.stage, message.fraction
                vital.moved_at = self._pool.now()
                state = self._pool.scheduler.workers.get(worker.id)
                if state and state.model:
                    self._pool.serving.tell(state.model)
            case messages.Ready():
                self._ready(worker, vital, message)
            case messages.Error() if message.id:
                self._calls.on_message(message)
            case messages.Error():
                self._pool.failures.failed(worker.id, from_wire(message.error))
            case messages.Log():
                level = message.level if message.level in ("debug", "warning", "error") else "info"
                fields = {"worker": worker.id} | message.fields
                self._pool.events.emit(f"worker.{message.event}", level, **fields)

    def _ready(self, worker: Worker, vital: Vital, ready: messages.Ready) -> None:
        now = self._pool.now()
        vital.ready_at, vital.facts = now, ready.facts
        vital.reported = ready.memory
        if vital.load_started:
            vital.load_s = round(now - vital.load_started, 3)
        # What was measured in the middle of the load may not add up.
        self._pool.measure()
        self._pool.feed(self._pool.scheduler.on_ready(worker.id, ready.slots, now))
        # After the requests have gone to it: they have waited long enough.
        asyncio.get_running_loop().call_soon(self._note_ready, worker, vital)

    def _note_ready(self, worker: Worker, vital: Vital) -> None:
        state = self._pool.scheduler.workers.get(worker.id)
        if state is None or state.state is State.KILLING:
            return
        if state.need and vital.load_s is not None:
            seconds = vital.load_s
            self._registry.record_load(state.need.model, seconds)
            self._pool.usage.loaded(state.need.model, seconds)
            need, model = state.need, self._pool.serving.models[state.need.model]
            held = self._pool.crew.footprint(worker.id, self._pool.scheduler.budget.devices)
            self._pool.crew.keep_book(worker.id)
            self._pool.footprints.begin(
                worker.id, model.content_hash, need.backend, need.options, held
            )
            self._pool.events.emit(
                "worker.ready", worker=worker.id, model=state.need.model, load_s=seconds
            )
        self._pool.conversations.prune()

    def on_exit(self, worker: Worker, how: str) -> None:
        state = self._pool.scheduler.workers.get(worker.id)
        if state is None or state.state is State.KILLING:
            return
        name = state.model or f"the {state.backend} backend"
        error: UmlError
        if state.state in (State.READY, State.DRAINING):
            error = WorkerDied(f"the worker of {name} {how}")
        else:
            tail = worker.log.tail(5)
            last = f"; its last lines: {' | '.join(tail)}" if tail else ""
            error = LoadFailed(f"loading {name} failed: the worker {how}{last}")
        self._pool.failures.failed(worker.id, error, died=True)
