"""What every handler needs, in one place: the services, and where they are found in a request."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from uml.protocol import __version__
from uml.protocol.errors import ShuttingDown
from uml.supervisor.api.gate import Gate
from uml.supervisor.api.live import Live
from uml.supervisor.api.sse import Flusher
from uml.supervisor.spool import Spool

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.events import Events
    from uml.supervisor.pool import Pool
    from uml.supervisor.registry import Registry
    from uml.supervisor.reload import Reloading


@dataclass
class Gateway:
    """stop: set to begin the end (force: without waiting for running answers). ready: preloading
    is done. url: where we listen. answers: how many there were, by route, method and status."""

    config: Config
    registry: Registry
    pool: Pool
    events: Events
    gate: Gate
    spool: Spool
    url: str = ""
    ready: bool = False
    stopping: bool = False
    force: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float = field(default_factory=time.monotonic)
    flusher: Flusher = field(default_factory=Flusher)
    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    live: Live = field(default_factory=Live)
    reloading: Reloading = field(init=False)

    def status(self) -> dict[str, Any]:
        """The body of GET /status."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "url": self.url,
            "uptime_s": round(time.monotonic() - self.started_at, 3),
            "state": "stopping" if self.stopping else "running",
            "home": str(self.config.home),
            **self.pool.status(),
        }

    def refuse_when_stopping(self) -> None:
        """Raises: ShuttingDown for new work while we end."""
        if self.stopping:
            raise ShuttingDown("the server is shutting down", retry_after_s=5.0)


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
#: The id of the request that is being answered.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
