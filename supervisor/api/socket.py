"""GET /v1/ws: many tasks over one WebSocket, sound in both directions.

Every message is a JSON object with a `type` and the `id` of the task it is about, which the client
chooses; binary messages are sound for the transcription that was begun last.

    -> {"type": "transcribe", "id", "model", "rate", "language"?, "prompt"?}, then s16le mono as
       binary, or {"type": "audio", "id", "audio": base64}; {"type": "end", "id"} ends it
    <- {"type": "partial"|"final", "id", "text", "start", "end"}, {"type": "done", "id", ...}
    -> {"type": "speak", "id", ...} as the body of POST /v1/audio/speech
    <- {"type": "audio", "id", "audio": base64}, {"type": "done", "id", "duration", "characters"}
    -> {"type": "cancel", "id"}        <- {"type": "cancelled", "id"}
    <- {"type": "error", "id", "error": {...}} as everywhere
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import WSMsgType, web

from uml.protocol.errors import BadRequest, TooLarge, UmlError
from uml.protocol.tasks import Transcribe
from uml.supervisor.api import audio
from uml.supervisor.api.answers import dump
from uml.supervisor.api.audio_fields import read_language
from uml.supervisor.api.errors import shield
from uml.supervisor.api.fields import Fields
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.utterances import MOST_S, Utterances
from uml.supervisor.api.waiting import Wait
from uml.supervisor.spool import Held

_MAX_MESSAGE_BYTES = 4 << 20
_MAX_TASKS = 64
_HEARTBEAT_S = 30.0


async def serve(request: web.Request) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    gateway.refuse_when_stopping()
    socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=_MAX_MESSAGE_BYTES)
    if not socket.can_prepare(request).ok:
        raise BadRequest("/v1/ws speaks WebSocket: connect with a client for that")
    await socket.prepare(request)
    talk = _Talk(gateway, request, socket)
    try:
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                talk.on_sound(None, message.data)
            elif message.type is WSMsgType.TEXT:
                talk.on_text(message.data)
    finally:
        await talk.close()
    return socket


class _Talk:
    """One connection: its tasks, and what waits to be written."""

    def __init__(
        self, gateway: Gateway, request: web.Request, socket: web.WebSocketResponse
    ) -> None:
        self._gateway, self._request, self._socket = gateway, request, socket
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._hearing: dict[str, _Hearing] = {}
        self._out: asyncio.Queue[str] = asyncio.Queue()
        self._owed = 0
        self._writer = asyncio.create_task(self._write())

    @property
    def backlog(self) -> int:
        return self._owed

    def send(self, kind: str, task: str | None, **fields: Any) -> None:
        text = dump({"type": kind, "id": task} | fields)
        self._owed += len(text)
        self._out.put_nowait(text)

    async def close(self) -> None:
        for task in (*self._tasks.values(), self._writer):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), self._writer, return_exceptions=True)

    def on_text(self, text: str) -> None:
        name: str | None = None
        try:
            fields = Fields(_object(text))
            name = fields.required_text("id")[:200]
            kind = fields.required_text("type")
            does = {
                "transcribe": self._transcribe,
                "speak": self._speak,
                "audio": self._audio,
                "end": self._end,
                "cancel": self._cancel,
            }.get(kind)
            if does is None:
                raise BadRequest(f"the type {kind[:40]!r} is not known", param="type")
            does(name, _object(text))
        except UmlError as e:
            self.send("error", name, **e.to_openai())

    def on_sound(self, name: str | None, data: bytes) -> None:
        """name: None = the transcription that was begun last."""
        name = next(reversed(self._hearing), None) if name is None else name
        hearing = self._hearing.get(name or "")
        if hearing is None:
            error = BadRequest("sound for no transcription: begin one with type transcribe")
            self.send("error", name, **error.to_openai())
            return
        hearing.feed(data)

    def _audio(self, name: str, body: Mapping[str, Any]) -> None:
        try:
            data = base64.b64decode(Fields(body).required_text("audio"), validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest("'audio' is not base64", param="audio") from None
        self.on_sound(name, data)

    def _end(self, name: str, body: Mapping[str, Any]) -> None:
        if hearing := self._hearing.get(name):
            hearing.end()

    def _cancel(self, name: str, body: Mapping[str, Any]) -> None:
        if task := self._tasks.get(name):
            task.cancel()
        else:
            raise BadRequest(f"no task {name!r} runs", param="id")

    def _transcribe(self, name: str, body: Mapping[str, Any]) -> None:
        hearing = _Hearing(self, name, self._gateway, body, self._request.headers)
        self._start(name, hearing.run)
        self._hearing[name] = hearing

    def _speak(self, name: str, body: Mapping[str, Any]) -> None:
        task, wishes, _ = audio.speech_of(self._gateway, body, self._request.headers)
        sink = _Voice(self, name)

        async def work() -> None:
            done = await audio.run(self._gateway, wishes, task, sink)
            self.send("done", name, **done.result)

        self._start(name, work)

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._gateway.refuse_when_stopping()
        if name in self._tasks:
            raise BadRequest(f"a task {name!r} runs already", param="id")
        if len(self._tasks) >= _MAX_TASKS:
            raise BadRequest(f"{_MAX_TASKS} tasks run on this connection already")
        self._tasks[name] = asyncio.create_task(self._run(name, work))

    async def _run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            self.send("cancelled", name)
        except Exception as e:
            error = shield(e, self._gateway, self._request)
            self.send("error", name, **error.to_openai())
        finally:
            self._tasks.pop(name, None)
            self._hearing.pop(name, None)

    async def _write(self) -> None:
        while True:
            text = await self._out.get()
            try:
                await self._socket.send_str(text)
            except ConnectionError:
                return  # the reader of messages notices, too
            self._owed -= len(text)


class _Voice(Wait):
    """A sink that sends sound."""

    def __init__(self, talk: _Talk, name: str) -> None:
        super().__init__()
        self._talk, self._name = talk, name

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if isinstance(delta, bytes):
            self._talk.send("audio", self._name, audio=base64.b64encode(delta).decode())

    def backlog(self) -> int:
        return self._talk.backlog


class _Hearing:
    """A live transcription: one request after the other, as the sound grows."""

    def __init__(
        self,
        talk: _Talk,
        name: str,
        gateway: Gateway,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        fields = Fields(body)
        rate = fields.whole("rate", low=8000, high=48000)
        self._wishes = audio.find(gateway, body, headers, "transcribe")
        self._language = read_language(fields)
        self._prompt = fields.text("prompt", limit=10_000)
        self._talk, self._name, self._gateway = talk, name, gateway
        self._live = Utterances(16000 if rate is None else rate)
        self._more = asyncio.Event()
        self._said: list[str] = []

    def feed(self, data: bytes) -> None:
        self._live.feed(data)
        self._more.set()

    def end(self) -> None:
        self._live.end()
        self._more.set()

    async def run(self) -> None:
        while not self._live.done:
            if self._live.waiting_s > MOST_S:
                raise TooLarge("sound comes faster than it is heard: send it as it is spoken")
            sound = self._live.window()
            if sound is None:
                if not self._live.done:
                    await self._more.wait()
                    self._more.clear()
                continue
            await self._hear(sound)
        text = " ".join(self._said)
        duration = round(self._live.duration_s, 3)
        self._talk.send("done", self._name, text=text, duration=duration)

    async def _hear(self, sound: bytes) -> None:
        sink = audio.Heard()
        task = Transcribe(
            audio=Held(sound),
            rate=self._live.rate,
            language=self._language,
            prompt=" ".join(self._said)[-400:] or self._prompt,
        )
        await audio.run(self._gateway, self._wishes, task, sink)
        for told in self._live.take(sink.transcript.segments):
            if told.final:
                self._said.append(told.text)
            start, end = round(told.start, 2), round(told.end, 2)
            kind = "final" if told.final else "partial"
            self._talk.send(kind, self._name, text=told.text, start=start, end=end)


def _object(text: str) -> dict[str, Any]:
    """Raises: BadRequest."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"the message is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise BadRequest("a message is a JSON object")
    return found
