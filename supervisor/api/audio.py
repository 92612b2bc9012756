"""POST /v1/audio/transcriptions, /v1/audio/translations, /v1/audio/speech; GET /v1/audio/voices.

Source: OpenAI API reference, audio.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Speak, Task
from uml.supervisor.api import inference, transcripts, voices
from uml.supervisor.api.answers import dump
from uml.supervisor.api.audio_fields import (
    SOUNDS,
    Transcription,
    read_speech,
    read_transcription,
)
from uml.supervisor.api.body import read_object
from uml.supervisor.api.errors import error_event, shield
from uml.supervisor.api.fields import Fields
from uml.supervisor.api.forms import read_form
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.models import states
from uml.supervisor.api.openai import Asked
from uml.supervisor.api.sse import ByteOutlet, Outlet, stream
from uml.supervisor.api.transcripts import Transcript
from uml.supervisor.api.waiting import Wait
from uml.supervisor.api.wishes import Wishes, read_wishes, split_name

if TYPE_CHECKING:
    from uml.protocol.messages import Done
    from uml.supervisor.calls import Sink

# --- speech to text ------------------------------------------------------------------------


class Heard(Wait):
    """A sink that keeps what is heard, and says it as it comes where there is an outlet."""

    def __init__(self, outlet: Outlet | None = None) -> None:
        super().__init__()
        self.transcript = Transcript()
        self._outlet = outlet

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if not isinstance(delta, dict):
            return
        first = not self.transcript.segments
        text = str(delta.get("text") or "")
        self.transcript.segments.append({"text": text} | (delta.get("segment") or {}))
        if self._outlet:
            said = text.lstrip() if first else text
            event = {"type": "transcript.text.delta", "delta": said}
            self._outlet.send(_event(event | {"progress": delta.get("progress")}))

    def backlog(self) -> int:
        return self._outlet.backlog() if self._outlet else 0

    def restart(self, choices: range | None = None) -> bool:
        if self._outlet:
            return False
        self.transcript.segments.clear()
        return True

    def end(self, done: Done, *, logprobs: bool) -> None:
        heard = self.transcript
        heard.language = done.result.get("language")
        heard.duration = float(done.result.get("duration") or 0.0)
        if self._outlet:
            event: dict[str, Any] = {"type": "transcript.text.done", "text": heard.text}
            if logprobs:
                event["logprobs"] = transcripts.logprobs_of(heard)
            self._outlet.send(_event(event | {"usage": heard.usage}))


async def transcribe(request: web.Request) -> web.StreamResponse:
    return await _hear(request, translate=False)


async def translate(request: web.Request) -> web.StreamResponse:
    return await _hear(request, translate=True)


async def _hear(request: web.Request, *, translate: bool) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    gateway.refuse_when_stopping()
    limit = gateway.config.max_upload_bytes
    with gateway.spool.body(limit) as body:
        form = await read_form(request, body, limit, numbers=("temperature",), flags=("stream",))
        gateway.refuse_when_stopping()
        asked = read_transcription(form, body, gateway.config.max_audio_s, translate=translate)
        wishes = find(gateway, form, request.headers, "transcribe")
        if asked.stream:
            return await _stream_heard(request, wishes, asked)
        sink = Heard()
        sink.end(await run(gateway, wishes, asked.task, sink), logprobs=asked.logprobs)
        text = transcripts.render(
            sink.transcript,
            asked.form,
            task="translate" if translate else "transcribe",
            granularities=asked.granularities,
            logprobs=asked.logprobs,
        )
        kind = transcripts.FORMATS[asked.form]
        return web.Response(text=text, content_type=kind, charset="utf-8", headers=sink.headers())


async def _stream_heard(
    request: web.Request, wishes: Wishes, asked: Transcription
) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    outlet = Outlet(request, gateway.flusher)
    sink = Heard(outlet)

    async def work() -> None:
        sink.end(await run(gateway, wishes, asked.task, sink), logprobs=asked.logprobs)

    return await stream(outlet, work(), sink, lambda e: error_event(shield(e, gateway, request)))


# --- text to speech ------------------------------------------------------------------------


class Said(Wait):
    """A sink that passes sound on: as bytes, or as events with base64 in them."""

    def __init__(self, outlet: Outlet, *, events: bool) -> None:
        super().__init__()
        self._outlet, self._events = outlet, events

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if not isinstance(delta, bytes):
            return
        if self._events:
            audio = base64.b64encode(delta).decode()
            self._outlet.send(f'data: {{"type":"speech.audio.delta","audio":"{audio}"}}\n\n')
        elif isinstance(self._outlet, ByteOutlet):
            self._outlet.send_bytes(delta)

    def backlog(self) -> int:
        return self._outlet.backlog()

    def end(self, done: Done) -> None:
        if self._events:
            result = done.result
            usage = {"type": "duration", "seconds": result.get("duration")}
            usage["characters"] = result.get("characters")
            self._outlet.send(_event({"type": "speech.audio.done", "usage": usage}))


async def speak(request: web.Request) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    body = await read_object(request)
    gateway.refuse_when_stopping()
    task, wishes, events = speech_of(gateway, body, request.headers)
    outlet: Outlet
    if events:
        outlet = Outlet(request, gateway.flusher)
    else:
        outlet = ByteOutlet(request, gateway.flusher, SOUNDS[task.format])
    sink = Said(outlet, events=events)

    async def work() -> None:
        sink.end(await run(gateway, wishes, task, sink))

    return await stream(outlet, work(), sink, lambda e: error_event(shield(e, gateway, request)))


def speech_of(
    gateway: Gateway, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[Speak, Wishes, bool]:
    """(the task, by which model, whether as events). Raises: BadRequest, ModelNotFound."""
    asked = read_speech(body)
    wishes = find(gateway, body, headers, "speak")
    model, speaker = voices.choose(
        wishes.model,
        asked.voice,
        gateway.registry.models(),
        gateway.config.voices,
        free=_is_openais(body, "speak"),
    )
    task = Speak(text=asked.text, voice=speaker, speed=asked.speed, format=asked.format)
    return task, Wishes(wishes.asked, model, wishes.keep_alive_s, wishes.options), asked.events


async def list_voices(request: web.Request) -> web.Response:
    """Every voice, and which of them OpenAI's names and the configured ones stand for."""
    gateway = request.app[GATEWAY]
    models = gateway.registry.models()
    found = [v for model in models if not model.error for v in voices.voices_of(model)]
    names: dict[str, str | None] = {}
    if model := voices.stand_in("tts-1", "speak", models, states(gateway)):
        configured = gateway.config.voices
        for name in (*voices.OPENAI_VOICES, *configured):
            try:
                who, speaker = voices.choose(model, name, models, configured, free=True)
                names[name] = f"{who.id}/{speaker}" if speaker else who.id
            except BadRequest:  # configured, and not here
                names[name] = None
    answer = {"object": "list", "data": [voices.describe(v) for v in found], "names": names}
    return web.json_response(answer, dumps=dump)


# --- both ----------------------------------------------------------------------------------


def find(
    gateway: Gateway, body: Mapping[str, Any], headers: Mapping[str, str], verb: str
) -> Wishes:
    """The model that is asked for, or the one that stands in for OpenAI's.

    Raises: BadRequest, ModelNotFound, InvalidModel, TaskNotSupported.
    """
    name, _ = split_name(Fields(body).required_text("model"))
    if _is_openais(body, verb):
        model = voices.stand_in(name, verb, gateway.registry.models(), states(gateway))
        if model and not _is_known(gateway, name):
            body = {**body, "model": str(body["model"]).replace(name, model.id, 1)}
    return read_wishes(body, headers, gateway.registry).for_task(verb)


def _is_known(gateway: Gateway, name: str) -> bool:
    """Whether somebody gave a model of ours this name."""
    low = name.lower()
    return any(
        low == m.id.lower() or low in (a.lower() for a in m.aliases)
        for m in gateway.registry.models()
    )


def _is_openais(body: Mapping[str, Any], verb: str) -> bool:
    return split_name(str(body.get("model")))[0].strip().lower() in voices.OPENAI_MODELS[verb]


async def run(gateway: Gateway, wishes: Wishes, task: Task, sink: Sink) -> Done:
    return await inference.run(gateway, wishes, Asked([task]), sink)


def _event(data: object) -> str:
    return f"data: {dump(data)}\n\n"
