"""Runs one backend: hello, load, serve.

Threads: the main thread reads the wire and never computes; loading has one, beats have one, the
writer has one (`channel`), and backends have theirs. The process ends at once when its stdin
closes; it needs no clean-up, because nothing it owns survives it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any

import msgpack

from uml.protocol import messages, tasks
from uml.protocol.errors import (
    BadRequest,
    LoadFailed,
    ProtocolError,
    TaskNotSupported,
    TooLarge,
    UmlError,
    Unavailable,
)
from uml.workers.base import Backend, Job, Outbox, pack_end
from uml.workers.channel import Channel

_BEAT_S = 0.5
#: Parameters of one request that come in parts, together. A body goes to disk; its length is the
#: supervisor's to limit.
_MAX_PARTS = 64 * 1024 * 1024
#: The folder that bodies go to; the system's where nothing is said.
_SCRATCH = "UML_SCRATCH"


class Host:
    """make: builds the backend, given its outbox and its log function; may import it first."""

    def __init__(
        self, channel: Channel, make: Callable[[Outbox, Callable[..., None]], Backend]
    ) -> None:
        self._channel = channel
        self._outbox = Outbox(channel.send_packed)
        self._make = make
        self._backend: Backend
        self._jobs: dict[str, Job] = {}
        #: Requests whose parts still come; a body's go into a file that has no name.
        self._parts: dict[str, tuple[messages.Request, bytearray | IO[bytes]]] = {}
        self._loading = self._ready = False
        self._loads = 0

    def run(self) -> None:
        """Serve until EOF; never returns."""
        try:
            self._backend = self._make(self._outbox, self._log)
            self._backend.beat = self._tell
            versions = self._backend.versions()
        except Exception as e:
            traceback.print_exc()
            self._give_up(LoadFailed(f"the backend does not import: {type(e).__name__}: {e}"))
        self._channel.send(messages.Hello(self._backend.name, os.getpid(), versions=versions))
        threading.Thread(target=self._beat, name="beats", daemon=True).start()
        try:
            for data in self._channel.receive():
                self._take(messages.parse(data))
        except ProtocolError as e:
            print(f"the supervisor broke the protocol: {e}", file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException:
            # Without its reader a worker would go on beating, deaf to everything.
            traceback.print_exc()
            os._exit(3)
        os._exit(0)

    def _take(self, message: messages.Message) -> None:
        if isinstance(message, messages.Request):
            if message.id in self._jobs or message.id in self._parts:
                self._refuse(message.id, BadRequest(f"request {message.id[:40]} runs already"))
            elif message.body:
                self._expect_body(message)
            elif message.parts:
                self._parts[message.id] = (message, bytearray())
            else:
                self._begin(message, message.params)
        elif isinstance(message, messages.Part):
            self._part(message)
        elif isinstance(message, messages.Credit):
            if job := self._jobs.get(message.id):
                job.credit(message.amount)
        elif isinstance(message, messages.Cancel):
            self._cancel(message.id)
        elif isinstance(message, messages.Threads):
            self._backend.set_threads(max(1, message.count))
        elif isinstance(message, messages.Prepare):
            self._backend.prepare(message.files)
        elif isinstance(message, messages.Load):
            if self._loading:
                raise ProtocolError("a second load: a worker has one model")
            self._loading = True
            self._backend.set_threads(max(1, message.threads))
            threading.Thread(target=self._load, args=(message,), name="load").start()
        else:
            raise ProtocolError(f"{message.t} is not for a worker")

    def _load(self, load: messages.Load) -> None:
        os.environ.update(load.environ)
        try:
            ready = self._backend.load(load, self._progress)
            frame = messages.pack(ready)
        except ProtocolError as e:
            self._give_up(LoadFailed(f"the backend's facts cannot be sent: {e.message}"))
        except UmlError as e:
            self._give_up(e)
        except BaseException as e:
            traceback.print_exc()
            self._give_up(LoadFailed(f"{type(e).__name__}: {e}"))
        self._backend.slots = ready.slots
        self._ready = True
        self._channel.send_packed(frame)

    def _progress(self, stage: str, fraction: float | None) -> None:
        self._loads += 1
        self._channel.send(messages.Progress(stage, fraction))

    def _give_up(self, error: UmlError) -> None:
        """Say why the load failed, and end."""
        self._channel.send_packed(pack_end(messages.Error(error.to_wire())))
        self._channel.drain()
        os._exit(1)

    def _part(self, part: messages.Part) -> None:
        if part.id not in self._parts:
            return  # cancelled or refused meanwhile
        request, data = self._parts[part.id]
        if not isinstance(data, bytearray):
            self._body_part(request, data, part)
            return
        data += part.data
        if len(data) > _MAX_PARTS:
            del self._parts[part.id]
            self._refuse(part.id, TooLarge(f"a request may have {_MAX_PARTS} bytes"))
        elif part.last:
            del self._parts[part.id]
            try:
                params = msgpack.unpackb(data, raw=False)
                if not isinstance(params, dict):
                    raise ValueError("not a map")
            except Exception as e:
                self._refuse(part.id, BadRequest(f"the request's parts are garbage: {e}"))
                return
            self._begin(request, params)

    def _expect_body(self, request: messages.Request) -> None:
        try:
            file = tempfile.TemporaryFile(dir=os.environ.get(_SCRATCH))  # noqa: SIM115
        except OSError as e:
            self._refuse(request.id, _no_place(e))
        else:
            self._parts[request.id] = (request, file)

    def _body_part(self, request: messages.Request, file: IO[bytes], part: messages.Part) -> None:
        try:
            file.write(part.data)
            if not part.last:
                return
            file.seek(0)
        except OSError as e:  # the disk is full
            file.close()
            self._refuse(part.id, _no_place(e))
        else:
            self._begin(request, request.params, file)
        del self._parts[part.id]

    def _begin(
        self, request: messages.Request, params: dict[str, Any], body: IO[bytes] | None = None
    ) -> None:
        job: Job | None = None
        try:
            task = tasks.read(request.task, params)
            if body and task.bulk:
                task = dataclasses.replace(task, **{task.bulk: body})
            if not self._ready:
                raise BadRequest("no model is loaded")
            if not self._backend.can(task):
                raise TaskNotSupported(f"this model cannot {request.task}")
            job = self._jobs[request.id] = Job(
                request.id, task, self._outbox, request.window, self._ended, body
            )
            self._backend.submit(job)
        except Exception as e:
            if isinstance(e, UmlError):
                error = e
            else:
                traceback.print_exc()
                error = BadRequest(f"{type(e).__name__}: {e}")
            if job is None:
                if body:
                    body.close()
                self._refuse(request.id, error)
            else:
                job.fail(error)
                self._outbox.flush()

    def _ended(self, job: Job) -> None:
        self._jobs.pop(job.id, None)

    def _cancel(self, request: str) -> None:
        if unfinished := self._parts.pop(request, None):
            if not isinstance(unfinished[1], bytearray):
                unfinished[1].close()
            self._outbox.end(messages.Done(request, ["cancelled"]))
            self._outbox.flush()
        elif job := self._jobs.get(request):
            job.cancel()
            self._backend.cancel(job)

    def _refuse(self, request: str, error: UmlError) -> None:
        self._outbox.end(messages.Error(error.to_wire(), request))
        self._outbox.flush()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._tell()
            pause.wait(_BEAT_S)

    def _tell(self) -> None:
        busy, queued, progress = self._backend.stats()
        memory = self._backend.memory()
        self._channel.send(messages.Beat(busy, queued, progress + self._loads, memory))

    def _log(self, level: str, event: str, **fields: Any) -> None:
        try:
            frame = messages.pack(messages.Log(level, event, fields))
        except ProtocolError:  # a log line must not fail a request
            shown = {name: repr(value)[:1000] for name, value in fields.items()}
            frame = messages.pack(messages.Log(level, event, shown))
        self._channel.send_packed(frame)


def _no_place(error: OSError) -> Unavailable:
    return Unavailable(f"a request's body cannot be kept: {error.strerror}")
