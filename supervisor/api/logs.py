"""GET /logs, /logs/stream, /events: what was said and what happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from aiohttp import web

from uml.protocol.errors import BadRequest
from uml.supervisor.api.answers import dump
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.models import states
from uml.supervisor.api.sse import Outlet
from uml.supervisor.events import Feed, render_json, render_pretty

#: How many lines of a log are given when nothing is said, and at most.
_LINES, _MOST_LINES = 100, 10_000
#: A comment this often keeps a quiet event stream from being cut by proxies.
_QUIET_S = 15.0

#: Makes a line of what a feed tells; None = not of this log.
Render = Callable[[dict[str, Any]], str | None]


async def logs(request: web.Request) -> web.Response:
    """The last lines, as text: of our own log, or of what a model's worker wrote.

    Query: model, lines, format ("json": one object a line).
    """
    _, _, history = _source(request)
    return web.Response(text="".join(f"{line}\n" for line in history), content_type=_kind(request))


async def stream_logs(request: web.Request) -> web.StreamResponse:
    """The same, and then each line as it comes, until the client leaves or we end."""
    gateway = request.app[GATEWAY]
    feed, render, history = _source(request)
    response = web.StreamResponse(headers={"X-Accel-Buffering": "no", "Cache-Control": "no-cache"})
    response.content_type, response.charset = _kind(request), "utf-8"
    with feed.subscribe(1024) as queue:
        await response.prepare(request)
        await response.write("".join(f"{line}\n" for line in history).encode(errors="replace"))
        async with contextlib.aclosing(_coming(gateway, queue)) as coming:
            async for thing in coming:
                line = render(thing) if thing else None
                if thing and thing.get("missed") and not _wants_json(request):
                    await response.write(f"({thing['missed']} lines missed)\n".encode())
                if line is not None:
                    await response.write(f"{line}\n".encode(errors="replace"))
    await response.write_eof()
    return response


async def events(request: web.Request) -> web.StreamResponse:
    """What happens, as it happens, until the client leaves or we end. Query: live ("1": also the
    event `live` once a second, with all that GET /status has and `pieces_per_s` of each worker)."""
    gateway = request.app[GATEWAY]
    outlet = Outlet(request, gateway.flusher)
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(gateway.events.subscribe())
        if request.query.get("live", "0") not in ("0", "false"):
            stack.enter_context(gateway.live.watch(gateway, queue))
        response = await outlet.open({})
        outlet.comment("events from now on")
        async with contextlib.aclosing(_coming(gateway, queue)) as coming:
            async for event in coming:
                if not outlet.alive:
                    break
                if event is None:
                    outlet.comment("still here")
                else:
                    outlet.send(f"event: {event['event']}\ndata: {_plain(event)}\n\n")
                    await asyncio.sleep(0)
    await outlet.close(cut=True)
    return response


async def _coming(
    gateway: Gateway, queue: asyncio.Queue[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """What comes into `queue`, None for a while without anything; ends when we end."""
    closed = asyncio.create_task(gateway.closed.wait())
    get: asyncio.Task[dict[str, Any]] | None = None
    try:
        while not closed.done():
            get = get or asyncio.create_task(queue.get())
            await asyncio.wait((get, closed), timeout=_QUIET_S, return_when=asyncio.FIRST_COMPLETED)
            if get.done():
                told, get = get.result(), None
                yield told
            else:
                yield None
    finally:
        closed.cancel()
        if get:
            get.cancel()


def _source(request: web.Request) -> tuple[Feed, Render, list[str]]:
    """The log that is meant: where it comes from, how it is said, its last lines.

    Raises: BadRequest, ModelNotFound.
    """
    gateway, query = request.app[GATEWAY], request.query
    try:
        count = max(0, min(int(query.get("lines", _LINES)), _MOST_LINES))
    except ValueError:
        raise BadRequest("'lines' must be a whole number", param="lines") from None
    name = query.get("model")
    if name:
        return _of_model(gateway, loaded_or_known(gateway, name), count, _wants_json(request))
    own, render = gateway.events, render_json if _wants_json(request) else render_pretty
    recent = list(own.recent)[-count:] if count else []
    return own, lambda e: render(e) if own.logs(e["level"]) else None, [render(e) for e in recent]


def _of_model(
    gateway: Gateway, model: str, count: int, as_json: bool
) -> tuple[Feed, Render, list[str]]:
    pool = gateway.pool

    def say(line: str) -> str:
        return render_json({"model": model, "line": line}) if as_json else line

    def render(said: dict[str, Any]) -> str | None:
        worker = pool.scheduler.workers.get(said["worker"])
        return say(said["line"]) if worker and worker.model == model else None

    lines = pool.tail(model, count) if count else []
    return pool.crew.said, render, [say(line) for line in lines]


def _wants_json(request: web.Request) -> bool:
    word = request.query.get("format", "text")
    if word not in ("text", "json"):
        raise BadRequest("'format' is text or json", param="format")
    return word == "json"


def _kind(request: web.Request) -> str:
    return "application/x-ndjson" if _wants_json(request) else "text/plain"


def loaded_or_known(gateway: Gateway, name: str) -> str:
    """The id of a model; one that runs is known by its id though its file may be gone."""
    loaded = states(gateway)
    return name if name in loaded else gateway.registry.find(name).id


def _plain(event: dict[str, Any]) -> str:
    """Fields may be anything that can be logged."""
    try:
        return dump(event)
    except (TypeError, ValueError):
        return dump({key: str(value) for key, value in event.items()})
