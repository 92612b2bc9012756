"""What is ours: load, unload, swap, status, stats, health, shutdown."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from uml.protocol import __version__
from uml.protocol.errors import BadRequest, Forbidden
from uml.supervisor.api.answers import dump
from uml.supervisor.api.body import read_object
from uml.supervisor.api.errors import shield
from uml.supervisor.api.fields import Fields
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.logs import loaded_or_known
from uml.supervisor.api.sse import Outlet, stream
from uml.supervisor.api.waiting import Wait
from uml.supervisor.api.wishes import Wishes, read_wishes
from uml.supervisor.config import is_loopback
from uml.supervisor.usage import days_ago, together

Progress = Callable[[str, float | None], None]


# --- looking -------------------------------------------------------------------------------


def _health(gateway: Gateway) -> dict[str, Any]:
    return {
        "service": "uml",
        "status": "stopping" if gateway.stopping else "ok",
        "version": __version__,
        "pid": os.getpid(),
    }


async def health(request: web.Request) -> web.Response:
    """Alive. Answered without a key, also by a server that is about to end."""
    return web.json_response(_health(request.app[GATEWAY]))


async def ready(request: web.Request) -> web.Response:
    """200 when requests are accepted and preloading is over, else 503."""
    gateway = request.app[GATEWAY]
    ok = gateway.ready and not gateway.stopping
    word = "ready" if ok else "stopping" if gateway.stopping else "loading"
    answer = _health(gateway) | {"status": word}
    return web.json_response(answer, status=200 if ok else 503)


async def status(request: web.Request) -> web.Response:
    return json(request.app[GATEWAY].status())


async def stats(request: web.Request) -> web.Response:
    """Usage by day and model. Query: days (30), model."""
    gateway, query = request.app[GATEWAY], request.query
    try:
        count = int(query.get("days", "30"))
    except ValueError:
        count = 0
    if not 1 <= count <= 10_000:
        raise BadRequest("'days' must be a whole number from 1", param="days")
    name = query.get("model")
    model = loaded_or_known(gateway, name) if name else None
    rows = await gateway.pool.usage.rows(days_ago(count), model)
    total = together(rows).to_map()
    return json({"days": [row.to_map() for row in rows], "total": total})


# --- changing ------------------------------------------------------------------------------


async def load(request: web.Request) -> web.StreamResponse:
    """Body: model, keep_alive?, options?, draft_model?, dry_run?, stream?."""
    gateway, body, wishes = await _read(request)
    if Fields(body).flag("dry_run"):
        return json(gateway.pool.commands.plan(wishes.model, options=wishes.options))

    async def work(progress: Progress) -> dict[str, Any]:
        return await gateway.pool.commands.load(
            wishes.model,
            keep_alive_s=wishes.keep_alive_s,
            options=wishes.options,
            progress=progress,
        )

    return await answer(request, body, work)


async def swap(request: web.Request) -> web.StreamResponse:
    """Body: model, force?, keep_alive?, options?, draft_model?, dry_run?, stream?."""
    gateway, body, wishes = await _read(request)
    force = Fields(body).flag("force") or False
    if Fields(body).flag("dry_run"):
        return json(gateway.pool.commands.plan(wishes.model, swap=True, options=wishes.options))

    async def work(progress: Progress) -> dict[str, Any]:
        return await gateway.pool.commands.swap(
            wishes.model,
            force=force,
            keep_alive_s=wishes.keep_alive_s,
            options=wishes.options,
            progress=progress,
        )

    return await answer(request, body, work)


async def unload(request: web.Request) -> web.StreamResponse:
    """Body: model or all, force?. A model that is not loaded gives no receipt and no error."""
    gateway, body = request.app[GATEWAY], await read_object(request, optional=True)
    fields = Fields(body)
    everything, name = fields.flag("all") or False, fields.text("model")
    force = fields.flag("force") or False
    if bool(name) == everything:
        raise BadRequest("give 'model', or 'all': true", param="model")
    model = None if everything or name is None else loaded_or_known(gateway, name)
    return json({"receipts": await gateway.pool.commands.unload(model, force=force)})


async def shutdown(request: web.Request) -> web.Response:
    """Begin the end: running answers finish first, unless `force`. Only from this machine."""
    gateway, body = request.app[GATEWAY], await read_object(request, optional=True)
    peer = request.remote or ""
    if peer and not is_loopback(peer.partition("%")[0].removeprefix("::ffff:")):
        raise Forbidden("only this machine may end the server")
    if "Origin" in request.headers:
        raise Forbidden("no web page may end the server")
    force = Fields(body).flag("force") or False
    gateway.force |= force
    if force or not gateway.stopping:  # asked twice is not asked harder
        gateway.stop.set()
    return web.json_response(_health(gateway) | {"status": "stopping"}, status=202)


async def _read(request: web.Request) -> tuple[Gateway, dict[str, Any], Wishes]:
    gateway, body = request.app[GATEWAY], await read_object(request)
    gateway.refuse_when_stopping()
    return gateway, body, read_wishes(body, request.headers, gateway.registry)


def json(answer: object) -> web.Response:
    return web.json_response(answer, dumps=dump)


async def answer(
    request: web.Request,
    body: dict[str, Any],
    work: Callable[[Progress], Awaitable[dict[str, Any]]],
) -> web.StreamResponse:
    """The result as JSON, or as events `progress`*, then `done` or `error`."""
    if not Fields(body).flag("stream"):
        return json(await work(lambda stage, fraction: None))
    gateway = request.app[GATEWAY]
    outlet, wait = Outlet(request, gateway.flusher), Wait()

    def progress(stage: str, fraction: float | None) -> None:
        wait.waiting(stage, fraction, 0)
        outlet.send(_event("progress", {"stage": stage, "fraction": fraction}))

    async def told() -> None:
        outlet.send(_event("done", await work(progress)))

    return await stream(
        outlet,
        told(),
        wait,
        lambda e: _event("error", shield(e, gateway, request).to_openai()),
    )


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {dump(data)}\n\n"
