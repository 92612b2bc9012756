"""Which address is answered by whom."""

from __future__ import annotations

from aiohttp import web

from uml.supervisor.api import (
    audio,
    configuration,
    inference,
    logs,
    metrics,
    models,
    native,
    profiles,
    socket,
)
from uml.supervisor.api.errors import boundary, mark
from uml.supervisor.api.gateway import GATEWAY, Gateway

#: Largest JSON body that is read.
MAX_BODY_BYTES = 64 << 20


def make_app(gateway: Gateway, *, max_body_bytes: int = MAX_BODY_BYTES) -> web.Application:
    """The whole HTTP face. GET never changes anything, and HEAD works where GET ends."""
    app = web.Application(middlewares=[boundary], client_max_size=max_body_bytes)
    app[GATEWAY] = gateway
    app.on_response_prepare.append(mark)
    app.add_routes(
        [
            web.get("/v1/models", models.list_models),
            web.get("/v1/models/{id:.+}", models.show_model),
            web.delete("/v1/models/{id:.+}", models.delete_model),
            web.post("/v1/chat/completions", inference.chat),
            web.post("/v1/completions", inference.complete),
            web.post("/v1/embeddings", inference.embed),
            web.post("/v1/audio/transcriptions", audio.transcribe),
            web.post("/v1/audio/translations", audio.translate),
            web.post("/v1/audio/speech", audio.speak),
            web.get("/v1/audio/voices", audio.list_voices),
            web.get("/v1/ws", socket.serve, allow_head=False),
            web.get("/profiles", profiles.list_profiles),
            web.post("/profiles/use", profiles.use),
            web.get("/status", native.status),
            web.get("/stats", native.stats),
            web.get("/metrics", metrics.metrics),
            web.get("/health", native.health),
            web.get("/ready", native.ready),
            web.get("/logs", logs.logs),
            web.get("/logs/stream", logs.stream_logs, allow_head=False),
            web.get("/events", logs.events, allow_head=False),
            web.post("/shutdown", native.shutdown),
            web.post("/config/reload", configuration.reload),
            web.post("/swap", native.swap),
            *(web.post(p, native.load) for p in ("/load", "/load_model", "/models/load")),
            *(web.post(p, native.unload) for p in ("/unload", "/unload_model", "/models/unload")),
        ]
    )
    return app
