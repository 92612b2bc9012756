"""What runs, once a second, for those who watch: the event `live` of GET /events?live=1."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from uml.supervisor.events import Feed

if TYPE_CHECKING:
    from uml.supervisor.api.gateway import Gateway

_EVERY_S = 1.0


class Live:
    """One look a second, however many watch, and none when nobody does."""

    def __init__(self) -> None:
        self._feed = Feed()
        self._task: asyncio.Task[None] | None = None
        self._watching = 0

    @contextlib.contextmanager
    def watch(self, gateway: Gateway, queue: asyncio.Queue[dict[str, Any]]) -> Iterator[None]:
        """Put a look into `queue` now and each second."""
        self._watching += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(gateway))
        try:
            with self._feed.into(queue):
                yield
        finally:
            self._watching -= 1
            if not self._watching:
                self._task.cancel()
                self._task = None

    async def _run(self, gateway: Gateway) -> None:
        before: dict[str, int] = {}
        last = time.monotonic()
        while True:
            status = gateway.status()
            now = time.monotonic()
            workers = status["workers"]
            for worker in workers:
                came = worker["pieces"] - before.get(worker["id"], worker["pieces"])
                worker["pieces_per_s"] = round(came / (now - last), 1) if now > last else 0.0
            before, last = {w["id"]: w["pieces"] for w in workers}, now
            del status["receipts"]
            self._feed.put({"event": "live", "level": "debug", "at": time.time(), **status})
            await asyncio.sleep(_EVERY_S)
