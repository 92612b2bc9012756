"""POST /config/reload."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from uml.protocol.errors import BadRequest
from uml.supervisor.api.answers import dump
from uml.supervisor.api.body import read_object
from uml.supervisor.api.fields import Fields
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.reload import Plan


async def reload(request: web.Request) -> web.Response:
    """Take the configuration in anew. Body: dry_run?: only say what that would do; then toml?: a
    text to look at instead of the file."""
    gateway, body = request.app[GATEWAY], await read_object(request, optional=True)
    gateway.refuse_when_stopping()
    fields = Fields(body)
    text = fields.text("toml", limit=1 << 20)
    if fields.flag("dry_run"):
        answer = _told(gateway, gateway.reloading.look(text)) | {"applied": False}
    elif text is not None:
        raise BadRequest("'toml' needs 'dry_run': the file is what counts", param="toml")
    else:
        busy = _busy(gateway)
        answer = _told(gateway, gateway.reloading.reload("POST /config/reload"), busy)
        answer["applied"] = True
    return web.json_response(answer, dumps=dump)


def _busy(gateway: Gateway) -> dict[str, int]:
    workers = gateway.pool.scheduler.workers.values()
    return {w.model: len(w.busy) for w in workers if w.model}


def _told(gateway: Gateway, plan: Plan, busy: dict[str, int] | None = None) -> dict[str, Any]:
    """changes: key, old, new, takes ("now" | "start"). restarts: model, because (its settings),
    busy (running answers that it waits for)."""
    counts = _busy(gateway) if busy is None else busy
    told = plan.to_map()
    for restart in told["restarts"]:
        restart["busy"] = counts.get(restart["model"], 0)
    return told
