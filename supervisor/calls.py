"""Requests that run in a worker: their output's way to the sink, credit, cancel, end.

A call ends exactly once: by the worker's `done` or `error`, or by the worker's own end. Only then
is its slot free again, also when the client left before: a cancelled call keeps its slot until
the worker has confirmed, or until `ignored` is told that it will not.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgpack

from uml.protocol import messages
from uml.protocol.errors import Cancelled, Stalled, UmlError, from_wire
from uml.protocol.frames import PART_BYTES
from uml.protocol.tasks import Body, Task
from uml.supervisor.patience import Patience
from uml.supervisor.spool import Held
from uml.supervisor.worker import Worker

#: Bytes a worker may send ahead of its reader.
WINDOW = 256 * 1024
#: A reader with more than this waiting in its socket gets no further credit for now.
_BACKLOG = 64 * 1024
_POLL_S = 0.05
#: Between two looks at a call that was cancelled.
_LOOK_S = 0.25
_READER_STALL_S = 60.0

_numbers = itertools.count(1)


class Sink(Protocol):
    """Where a request's output goes; called synchronously in the event loop."""

    def waiting(self, state: str, fraction: float | None, position: int) -> None:
        """Not served yet: the model's state, how far its load is, requests before this one."""

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        """Output of choice `index`."""

    def backlog(self) -> int:
        """Bytes taken by `chunk` that the reader has not taken yet."""

    def restart(self, choices: range | None = None) -> bool:
        """Forget the output of these choices (None: all), because they are done again; False when
        some of it went out to the reader already."""


@dataclass(eq=False)
class Call:
    """One request in one worker. first_at: when the first content reached the sink.
    lost: it ended with its worker. late: told of the end of a call that was cancelled."""

    worker: Worker
    sink: Sink | None
    ended: Callable[[], None]
    id: str = field(default_factory=lambda: f"r{next(_numbers)}")
    future: asyncio.Future[messages.Done] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    first_at: float | None = None
    lost: bool = False
    late: Callable[[messages.Done], None] | None = None
    unacknowledged: int = 0
    polling: bool = False
    timer: asyncio.TimerHandle | None = None


class Calls:
    """Owner of all running calls. ignored: told of a worker that does not honour a cancel."""

    def __init__(self, ignored: Callable[[Worker], None]) -> None:
        self._calls: dict[str, Call] = {}
        self._ignored = ignored

    def __len__(self) -> int:
        return len(self._calls)

    def start(self, worker: Worker, task: Task, sink: Sink, ended: Callable[[], None]) -> Call:
        """Send `task` to `worker`. `ended` is called once, when the slot is free again."""
        call = Call(worker, sink, ended)
        self._calls[call.id] = call
        params = task.to_wire()
        packed = msgpack.packb(params, use_bin_type=True)
        if task.bulk:
            worker.send(messages.Request(call.id, task.name, params, body=True, window=WINDOW))
            worker.send_bulk(self._parts(call, getattr(task, task.bulk)))
        elif len(packed) <= PART_BYTES:
            worker.send(messages.Request(call.id, task.name, params, window=WINDOW))
        else:
            worker.send(messages.Request(call.id, task.name, parts=True, window=WINDOW))
            worker.send_bulk(self._parts(call, Held(packed)))
        return call

    def _parts(self, call: Call, body: Body) -> Iterator[bytes]:
        """The frames of a body, read as they are asked for; none any more once the client left."""
        offset = 0
        while call.sink is not None:
            data = body.read_at(offset, PART_BYTES)
            offset += len(data)
            last = offset >= body.size or not data
            yield messages.pack(messages.Part(call.id, data, last=last))
            if last:
                return

    def on_chunks(self, items: list[Any]) -> None:
        """The hot path: one frame's output, spread over the sinks."""
        calls = self._calls
        for request, index, delta in items:
            call = calls.get(request)
            if call is None or call.sink is None:
                continue
            if call.first_at is None:
                call.first_at = time.monotonic()
            call.sink.chunk(index, delta)
            call.unacknowledged += messages.delta_bytes(delta)
            if call.unacknowledged > WINDOW // 2 and not call.polling:
                self._credit(call, 0, 0.0)

    def _credit(self, call: Call, backlog_before: int, stalled_s: float) -> None:
        if call.future.done() or call.sink is None:
            return
        backlog = call.sink.backlog()
        if backlog <= _BACKLOG:
            call.polling = False
            amount, call.unacknowledged = call.unacknowledged, 0
            call.worker.send(messages.Credit(call.id, amount))
            return
        stalled_s = stalled_s + _POLL_S if backlog >= backlog_before > 0 else 0.0
        if stalled_s > _READER_STALL_S:
            call.future.set_exception(Stalled("the reader took nothing for a minute"))
            self.cancel(call)
            return
        call.polling = True
        loop = asyncio.get_running_loop()
        call.timer = loop.call_later(_POLL_S, self._credit, call, backlog, stalled_s)

    def on_done(self, done: messages.Done) -> None:
        call = self._end(done.id)
        if call and not call.future.done():
            call.future.set_result(done)
        elif call and call.late:
            call.late(done)

    def on_error(self, request: str, error: UmlError) -> None:
        call = self._end(request)
        if call and not call.future.done():
            call.future.set_exception(error)

    def on_message(self, message: messages.Message) -> None:
        """`done` and `error` of a request."""
        if isinstance(message, messages.Done):
            self.on_done(message)
        elif isinstance(message, messages.Error) and message.id:
            self.on_error(message.id, from_wire(message.error))

    def on_worker_lost(self, worker: Worker, error: UmlError) -> None:
        """All calls of a worker that is gone end with `error`."""
        for call in [c for c in self._calls.values() if c.worker is worker]:
            call.lost = True
            self.on_error(call.id, error)

    def cancel(self, call: Call) -> None:
        """The client left. The slot comes free when the worker confirms."""
        if call.id not in self._calls:
            return
        call.sink = None
        if not call.future.done():
            call.future.set_exception(Cancelled("the client left"))
        call.future.exception()  # nobody may be left to look at it
        call.worker.send(messages.Cancel(call.id))
        self._await_end(call, Patience())

    def _await_end(self, call: Call, patience: Patience) -> None:
        """Look again and again until the worker has had its time for it."""
        left = call.worker.cancel_s - patience.waited()
        if call.id not in self._calls:
            return
        if left <= 0:
            self._ignored(call.worker)
            return
        loop = asyncio.get_running_loop()
        call.timer = loop.call_later(min(left, _LOOK_S), self._await_end, call, patience)

    def _end(self, request: str) -> Call | None:
        call = self._calls.pop(request, None)
        if call:
            if call.timer:
                call.timer.cancel()
            call.ended()
        return call
