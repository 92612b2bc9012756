"""One place where things that happened are told: to the log, and to whoever subscribed.

An event is a name and fields (`worker.ready model=... load_s=...`). Emitting never blocks: a
subscriber that does not keep up loses its oldest events and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, TextIO

#: Levels, the least important first.
LEVELS = ("debug", "info", "warning", "error")
#: Events that GET /logs can give.
KEPT = 2000


def render_pretty(event: dict[str, Any]) -> str:
    """`12:34:56 info    worker.ready model=a load_s=0.31`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    fields = " ".join(
        f"{k}={_plain(v)}" for k, v in event.items() if k not in ("at", "event", "level")
    )
    return f"{clock} {event['level']:<7} {event['event']} {fields}".rstrip()


def render_json(event: dict[str, Any]) -> str:
    """The same as one line of JSON; `at` in seconds since 1970."""
    return json.dumps(event, default=str)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if isinstance(value, str) and (" " in text or not text) else text


class Feed:
    """Hands things, as maps, to all who subscribed."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[dict[str, Any]]] = set()

    def put(self, thing: dict[str, Any]) -> None:
        for queue in self._queues:
            told = thing
            if queue.full():
                lost = queue.get_nowait().get("missed", 0) + 1
                told = thing | {"missed": thing.get("missed", 0) + lost}
            queue.put_nowait(told)

    @contextlib.contextmanager
    def subscribe(self, size: int = 256) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """A queue of what comes from now on."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(size)
        with self.into(queue):
            yield queue

    @contextlib.contextmanager
    def into(self, queue: asyncio.Queue[dict[str, Any]]) -> Iterator[None]:
        """What comes goes into `queue` too."""
        self._queues.add(queue)
        try:
            yield
        finally:
            self._queues.discard(queue)


class Events(Feed):
    """format: "text" | "json". level: of the least important that is logged. stream: where lines
    go; None = nowhere. recent: the last events that were logged, the oldest first. counts: how
    many there were, by name and level."""

    def __init__(
        self, stream: TextIO | None = sys.stderr, format: str = "text", level: str = "info"
    ) -> None:
        super().__init__()
        self._stream = stream
        self.recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.set(format, level)

    def set(self, format: str, level: str) -> None:
        """Write differently from now on."""
        self._render = render_json if format == "json" else render_pretty
        self._threshold = LEVELS.index(level)

    def logs(self, level: str) -> bool:
        """Whether events of a level are logged."""
        return (LEVELS.index(level) if level in LEVELS else 1) >= self._threshold

    def emit(self, name: str, level: str = "info", /, **fields: Any) -> None:
        event: dict[str, Any] = {"at": time.time(), "level": level, "event": name}
        # A field of a worker's log may be called like one of ours.
        event |= {k if k not in event else f"{k}_": v for k, v in fields.items()}
        self.counts[name, level] += 1
        if self.logs(level):
            self.recent.append(event)
            if self._stream is not None:
                # A closed terminal or a full disk must not take the supervisor down.
                with contextlib.suppress(OSError, ValueError):
                    self._stream.write(self._render(event) + "\n")
                    self._stream.flush()
        self.put(event)
