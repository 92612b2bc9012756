"""GET /profiles, POST /profiles/use: models that belong together."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from uml.supervisor.api.body import read_object
from uml.supervisor.api.fields import Fields
from uml.supervisor.api.gateway import GATEWAY
from uml.supervisor.api.native import Progress, answer, json
from uml.supervisor.api.wishes import keep_alive_of


async def list_profiles(request: web.Request) -> web.Response:
    return json({"profiles": request.app[GATEWAY].pool.profiles.all()})


async def use(request: web.Request) -> web.StreamResponse:
    """Body: name, keep_alive?, stream?."""
    gateway, body = request.app[GATEWAY], await read_object(request)
    gateway.refuse_when_stopping()
    fields = Fields(body)
    name = fields.required_text("name")
    keep_alive_s = keep_alive_of(fields.raw("keep_alive")[1], "keep_alive")

    async def work(progress: Progress) -> dict[str, Any]:
        return await gateway.pool.profiles.use(name, keep_alive_s=keep_alive_s, progress=progress)

    return await answer(request, body, work)
