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
from collections.abc import Iterator
from typing import Any, TextIO

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def render_pretty(event: dict[str, Any]) -> str:
    """`12:34:56 info    worker.ready model=a load_s=0.31`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    fields = " ".join(
        f"{k}={_plain(v)}" for k, v in event.items() if k not in ("at", "event", "level")
    )
    return f"{clock} {event['level']:<7} {event['event']} {fields}".rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if isinstance(value, str) and (" " in text or not text) else text


class Events:
    """format: "pretty" | "json". stream: where lines go; None = nowhere."""

    def __init__(
        self, stream: TextIO | None = sys.stderr, format: str = "pretty", level: str = "info"
    ) -> None:
        self._stream, self._json = stream, format == "json"
        self._threshold = _LEVELS.get(level, 20)
        self._subscribers: set[asyncio.Queue[dict[str, Any]]] = set()

    def emit(self, name: str, level: str = "info", /, **fields: Any) -> None:
        event: dict[str, Any] = {"at": time.time(), "level": level, "event": name}
        # A field of a worker's log may be called like one of ours.
        event |= {k if k not in event else f"{k}_": v for k, v in fields.items()}
        if self._stream is not None and _LEVELS.get(level, 20) >= self._threshold:
            line = json.dumps(event, default=str) if self._json else render_pretty(event)
            # A closed terminal or a full disk must not take the supervisor down.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
                event = event | {"missed": event.get("missed", 0) + 1}
            queue.put_nowait(event)

    @contextlib.contextmanager
    def subscribe(self, size: int = 256) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """A queue of events from now on."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(size)
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)
