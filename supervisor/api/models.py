"""GET /v1/models, GET and DELETE /v1/models/{id}."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from uml.protocol.errors import Conflict
from uml.supervisor import crashes
from uml.supervisor.api.answers import dump
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.voices import languages_of, voices_of

if TYPE_CHECKING:
    from uml.supervisor.registry import Model


def states(gateway: Gateway) -> dict[str, str]:
    """Model id -> state of its worker, of those that have one."""
    workers = gateway.pool.status()["workers"]
    return {w["model"]: w["state"] for w in workers if w["model"]}


def describe(model: Model, gateway: Gateway, loaded: Mapping[str, str]) -> dict[str, Any]:
    """OpenAI's model object, and what else is known. context_length: what it was trained for.
    state: of its worker, or "unloaded", "broken" (see error), "failed" (see GET /status)."""
    resting = "failed" if model.id in gateway.pool.failing() else "unloaded"
    facts = model.facts
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "uml",
        "type": facts.type if facts else None,
        "tasks": list(facts.tasks) if facts else [],
        "format": model.file.format,
        "quantization": facts.quantization if facts else None,
        "parameters": facts.parameters if facts else None,
        "size_bytes": model.file.size_bytes,
        "context_length": facts.context_length if facts else None,
        **(_speech(model) if facts and facts.type in ("tts", "stt") else {}),
        "state": "broken" if model.error else loaded.get(model.id, resting),
        "backend": model.backend,
        "aliases": list(model.aliases),
        "path": model.file.path,
        "source": model.source,
        "error": model.error,
    }


def _speech(model: Model) -> dict[str, Any]:
    """What a model speaks or hears. languages: codes."""
    told: dict[str, Any] = {"languages": languages_of(model.facts) if model.facts else []}
    if found := voices_of(model):
        told["voices"] = [voice.id for voice in found]
    return told


async def list_models(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    loaded = states(gateway)
    data = [describe(model, gateway, loaded) for model in gateway.registry.models()]
    return web.json_response({"object": "list", "data": data}, dumps=dump)


async def show_model(request: web.Request) -> web.Response:
    """A broken model is shown with its reason, as in the list."""
    gateway = request.app[GATEWAY]
    name = request.match_info["id"]
    model = _by_id(gateway, name) or gateway.registry.find(name)
    found = describe(model, gateway, states(gateway))
    crash = crashes.last(gateway.config.home, model.id)
    return web.json_response(found | {"last_crash": crash}, dumps=dump)


async def delete_model(request: web.Request) -> web.Response:
    """Deletes the files. Raises: Conflict while it is loaded, or when they are not ours."""
    gateway = request.app[GATEWAY]
    name = request.match_info["id"]
    model = _by_id(gateway, name) or gateway.registry.find(name)
    state = states(gateway).get(model.id)
    if state is not None:
        raise Conflict(f"{model.id} is loaded ({state}): unload it first", param="model")
    removed = gateway.registry.remove(model.id)
    gateway.pool.conversations.forget(model.content_hash)
    gateway.events.emit("model.removed", model=model.id, files=len(removed))
    answer = {
        "id": model.id,
        "object": "model",
        "deleted": True,
        "files": [os.fspath(path) for path in removed],
        "size_bytes": model.file.size_bytes,
    }
    return web.json_response(answer, dumps=dump)


def _by_id(gateway: Gateway, name: str) -> Model | None:
    """Also a broken model, which `Registry.find` refuses."""
    wanted = name.casefold()
    return next((m for m in gateway.registry.models() if m.id.casefold() == wanted), None)
