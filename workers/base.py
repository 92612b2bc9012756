"""What a backend has to be: `Backend`, the `Job`s it gets, the `Outbox` its output goes to.

A simple backend writes one generator per task under the task's verb and gets threads for free; a
batching one overrides `submit` and runs a loop of its own. Either way output is collected in the
outbox and leaves with `flush`, one `chunks` frame for everything since the last one, through a
writer thread, so that a full pipe never blocks the loop that computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, ClassVar

from uml.protocol import frames, messages
from uml.protocol.errors import InternalError, ProtocolError, TaskNotSupported, UmlError
from uml.protocol.tasks import Task

Delta = str | bytes | dict[str, Any]
Progress = Callable[[str, float | None], None]

#: One delta is no larger, so that it fits into a frame whatever comes with it.
MAX_DELTA_BYTES = frames.MAX_FRAME_BYTES // 2


class Outbox:
    """Collects output of all jobs; thread-safe. send: takes a packed frame, must not block."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._items: list[list[Any]] = []
        self._after: list[bytes] = []
        #: Grows with every flush that had something: the beat's sign of progress.
        self.flushed = 0

    def add(self, request: str, index: int, delta: Delta) -> None:
        with self._lock:
            self._items.append([request, index, delta])

    def end(self, message: messages.Done | messages.Error) -> None:
        """A `done` or `error`; it leaves after the chunks collected so far. One that cannot be
        packed becomes an `error` that says so: a request always ends."""
        frame = pack_end(message)
        with self._lock:
            self._after.append(frame)

    def flush(self) -> None:
        """One `chunks` frame with everything collected (more where it is too large for one), then
        the ends."""
        with self._lock:
            if not self._items and not self._after:
                return
            items, after = self._items, self._after
            self._items, self._after = [], []
            self.flushed += 1
            # Sent under the lock: two flushing threads must not swap their frames.
            if items:
                self._send_chunks(items)
            for frame in after:
                self._send(frame)

    def _send_chunks(self, items: list[list[Any]]) -> None:
        try:
            frame = messages.pack(messages.Chunks(items))
        except ProtocolError:
            # Each delta fits (`Job.emit` has looked), so there are too many: by halves.
            if len(items) == 1:
                raise
            middle = len(items) // 2
            self._send_chunks(items[:middle])
            self._send_chunks(items[middle:])
        else:
            self._send(frame)


def pack_end(message: messages.Done | messages.Error) -> bytes:
    """`message` as a frame; one that cannot be packed as an `error` that says why."""
    try:
        return messages.pack(message)
    except ProtocolError as e:
        error = InternalError(f"the backend's result cannot be sent: {e.message}")
        return messages.pack(messages.Error(error.to_wire(), message.id))


class Job:
    """One request inside a worker. window: bytes that may be sent before the reader's credit.
    body: the file that came with it; closed with the job."""

    def __init__(
        self,
        id: str,
        task: Task,
        outbox: Outbox,
        window: int,
        ended: Callable[[Job], None],
        body: IO[bytes] | None = None,
    ) -> None:
        self.id, self.task = id, task
        self._body = body
        self.cancelled = False
        self.done = False
        self._outbox, self._window, self._ended = outbox, window, ended
        self._sent = self._credited = 0
        self._room = threading.Event()
        self._room.set()
        #: Taken once, by whoever ends the job: its own thread, or a cancel's.
        self._ending = threading.Lock()

    @property
    def blocked(self) -> bool:
        """The reader has fallen behind: do not generate for it now."""
        return self._sent - self._credited >= self._window

    def emit(self, index: int, delta: Delta) -> None:
        """Output of choice `index`; leaves with the next flush. Nothing after the end.

        A delta that cannot go on the wire fails this job, and no other one of the step.
        """
        if self.done:
            return
        try:
            size = messages.delta_bytes(delta)
        except (TypeError, ValueError, OverflowError) as e:
            self._spoiled(f"{type(e).__name__}: {e}")
            return
        if size > MAX_DELTA_BYTES:
            self._spoiled(f"{size} bytes in one piece, {MAX_DELTA_BYTES} may be")
            return
        self._sent += size
        if self.blocked:
            self._room.clear()
        self._outbox.add(self.id, index, delta)

    def credit(self, amount: int) -> None:
        self._credited += amount
        if not self.blocked:
            self._room.set()

    def wait_for_room(self) -> None:
        """Block this job's own thread while the reader is behind; a cancel ends the wait."""
        while self.blocked and not self.cancelled:
            self._room.wait(0.5)

    def cancel(self) -> None:
        self.cancelled = True
        self._room.set()

    def finish(
        self,
        finish: list[str],
        usage: dict[str, int] | None = None,
        timings: dict[str, float] | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """The job ended well; later calls do nothing."""
        self._end(messages.Done(self.id, finish, usage or {}, timings or {}, result or {}))

    def fail(self, error: UmlError) -> None:
        self._end(messages.Error(error.to_wire(), self.id))

    def _spoiled(self, why: str) -> None:
        self.cancel()  # so that the backend stops working on it
        self.fail(InternalError(f"the backend's output cannot be sent: {why}"))

    def _end(self, message: messages.Done | messages.Error) -> None:
        if not self._ending.acquire(blocking=False):
            return
        self.done = True
        if self._body:
            self._body.close()
        self._ended(self)
        self._outbox.end(message)


class Backend:
    """Base of all backends. log: `log("info", "event", field=...)` becomes a `log` frame. beat:
    sends what `stats` and `memory` say now, where that cannot wait for half a second.
    slots: requests served at once; the host sets it to what `load` said in `Ready`. threads: cores
    to compute with for now, see `set_threads`."""

    name: ClassVar[str] = ""
    slots: int = 1
    threads: int = 1

    def __init__(self, outbox: Outbox, log: Callable[..., None]) -> None:
        self.outbox, self.log = outbox, log
        self.beat: Callable[[], None] = lambda: None
        self._threads: ThreadPoolExecutor | None = None
        self._futures: dict[Job, Future[None]] = {}

    def versions(self) -> dict[str, str]:
        """Import the library and say its versions. Raises: ImportError."""
        return {}

    def prepare(self, files: list[str]) -> None:
        """`files` are likely to be loaded next: begin with what of that takes little memory (the
        spec's `process_bytes`, and what the estimate counts to the process) and no device. Must
        return at once. May be called for others, and others may be loaded, then."""

    def load(self, load: messages.Load, progress: Progress) -> messages.Ready:
        """Load the model; blocks. Returns only after the model has worked once.

        Raises: UmlError, or anything: it becomes the reason of the failed load.
        """
        raise TaskNotSupported(f"the {self.name} backend loads nothing")

    def set_threads(self, count: int) -> None:
        """Compute with `count` threads from now on: the other cores are somebody else's. Called on
        the reader's thread, before the load and at any time after, so it must be quick. What reads
        `self.threads` at every step or job needs nothing more."""
        self.threads = count

    def submit(self, job: Job) -> None:
        """Begin a job; called on the reader's thread, so it must be quick."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max(1, self.slots), thread_name_prefix="job")
        future = self._futures[job] = self._threads.submit(self._work, job)
        future.add_done_callback(lambda _: self._futures.pop(job, None))

    def cancel(self, job: Job) -> None:
        """`job.cancelled` is set already; wake up whatever has to notice. Called on the reader's
        thread. A job that still waits for a thread of the default `submit` ends here."""
        future = self._futures.get(job)
        if future is not None and future.cancel():
            job.finish(["cancelled"])
            self.outbox.flush()

    def stats(self) -> tuple[int, int, int]:
        """(busy, queued, progress): progress grows whenever work was done."""
        futures = list(self._futures.values())
        busy = sum(future.running() for future in futures)
        return busy, len(futures) - busy, self.outbox.flushed

    def memory(self) -> dict[str, int]:
        """Device -> bytes the library says it holds."""
        return {}

    def can(self, task: Task) -> bool:
        """Whether this backend has the task's verb."""
        return callable(getattr(self, task.name, None))

    def _work(self, job: Job) -> None:
        """Run the generator named by the task's verb: each delta leaves as it comes."""
        result: dict[str, Any] = {}
        try:
            steps: Generator[Delta, None, dict[str, Any] | None] = getattr(self, job.task.name)(job)
            while not job.cancelled:
                try:
                    delta = next(steps)
                except StopIteration as end:
                    result = end.value or {}
                    break
                job.emit(0, delta)
                self.outbox.flush()
                job.wait_for_room()
            steps.close()
            job.finish(["cancelled" if job.cancelled else "stop"], result=result)
        except UmlError as e:
            job.fail(e)
        except Exception as e:
            job.fail(InternalError(f"{type(e).__name__}: {e}"))
        finally:
            self.outbox.flush()
