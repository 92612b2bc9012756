"""What a backend has to be: `Backend`, the `Job`s it gets, the `Outbox` its output goes to.

A simple backend writes one generator per task under the task's verb and gets threads for free; a
batching one overrides `submit` and runs a loop of its own. Either way output is collected in the
outbox and leaves with `flush`, one `chunks` frame for everything since the last one, through a
writer thread, so that a full pipe never blocks the loop that computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from uml.protocol import messages
from uml.protocol.errors import InternalError, TaskNotSupported, UmlError
from uml.protocol.tasks import Task

Delta = str | bytes | dict[str, Any]
Progress = Callable[[str, float | None], None]


class Outbox:
    """Collects output of all jobs; thread-safe. send: takes a packed frame, must not block."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._items: list[list[Any]] = []
        self._after: list[messages.Message] = []
        #: Grows with every flush that had something: the beat's sign of progress.
        self.flushed = 0

    def add(self, request: str, index: int, delta: Delta) -> None:
        with self._lock:
            self._items.append([request, index, delta])

    def end(self, message: messages.Message) -> None:
        """A `done` or `error`; it leaves after the chunks collected so far."""
        with self._lock:
            self._after.append(message)

    def flush(self) -> None:
        """One `chunks` frame with everything collected, then the ends."""
        with self._lock:
            if not self._items and not self._after:
                return
            items, after = self._items, self._after
            self._items, self._after = [], []
            self.flushed += 1
            # Sent under the lock: two flushing threads must not swap their frames.
            if items:
                self._send(messages.pack(messages.Chunks(items)))
            for message in after:
                self._send(messages.pack(message))


class Job:
    """One request inside a worker. window: bytes that may be sent before the reader's credit."""

    def __init__(
        self, id: str, task: Task, outbox: Outbox, window: int, ended: Callable[[Job], None]
    ) -> None:
        self.id, self.task = id, task
        self.cancelled = False
        self.done = False
        self._outbox, self._window, self._ended = outbox, window, ended
        self._sent = self._credited = 0
        self._room = threading.Event()
        self._room.set()

    @property
    def blocked(self) -> bool:
        """The reader has fallen behind: do not generate for it now."""
        return self._sent - self._credited >= self._window

    def emit(self, index: int, delta: Delta) -> None:
        """Output of choice `index`; leaves with the next flush. Nothing after the end."""
        if self.done:
            return
        self._sent += messages.delta_bytes(delta)
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

    def _end(self, message: messages.Message) -> None:
        if self.done:
            return
        self.done = True
        self._ended(self)
        self._outbox.end(message)


class Backend:
    """Base of all backends. log: `log("info", "event", field=...)` becomes a `log` frame."""

    name: ClassVar[str] = ""

    def __init__(self, outbox: Outbox, log: Callable[..., None]) -> None:
        self.outbox, self.log = outbox, log
        self._threads: ThreadPoolExecutor | None = None
        self._slots = 1
        self._running = 0

    def versions(self) -> dict[str, str]:
        """Import the library and say its versions. Raises: ImportError."""
        return {}

    def load(self, load: messages.Load, progress: Progress) -> messages.Ready:
        """Load the model; blocks. Returns only after the model has worked once.

        Raises: UmlError, or anything: it becomes the reason of the failed load.
        """
        raise TaskNotSupported(f"the {self.name} backend loads nothing")

    def submit(self, job: Job) -> None:
        """Begin a job; called on the reader's thread, so it must be quick."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._slots, thread_name_prefix="job")
        self._threads.submit(self._work, job)

    def cancel(self, job: Job) -> None:
        """`job.cancelled` is set already; wake up whatever has to notice."""

    def stats(self) -> tuple[int, int, int]:
        """(busy, queued, progress): progress grows whenever work was done."""
        return self._running, 0, self.outbox.flushed

    def memory(self) -> dict[str, int]:
        """Device -> bytes the library says it holds."""
        return {}

    def can(self, task: Task) -> bool:
        """Whether this backend has the task's verb."""
        return callable(getattr(self, task.name, None))

    def _work(self, job: Job) -> None:
        """Run the generator named by the task's verb: each delta leaves as it comes."""
        self._running += 1
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
            self._running -= 1
            self.outbox.flush()
