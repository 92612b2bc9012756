"""The WebSocket: speaking and hearing at once, cancelled, and every wrong message answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.supervisor.served import Served, served
from tests.supervisor.test_utterances import quiet, tone

FILES: dict[str, dict[str, Any]] = {
    "ears": {"type": "stt", "tasks": ["transcribe"]},
    "mouth": {"type": "tts", "tasks": ["speak"]},
    "alpha": {},
}
#: Takes a minute.
LONG = "slow=0.1 " + "word " * 600


@contextlib.asynccontextmanager
async def talking(home: Path) -> AsyncIterator[tuple[Served, aiohttp.ClientWebSocketResponse]]:
    async with served(home, files=FILES) as house:
        async with house.session.ws_connect(house.url + "/v1/ws") as socket:
            yield house, socket


async def until(socket: aiohttp.ClientWebSocketResponse, *kinds: str) -> list[dict[str, Any]]:
    """Messages up to the first of these types."""
    found = []
    while not found or found[-1]["type"] not in kinds:
        found.append(await socket.receive_json(timeout=20))
    return found


async def test_speech_streams(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, socket):
        await socket.send_json(
            {"type": "speak", "id": "s", "model": "tts-1", "voice": "nova", "input": "one two"}
        )
        *sounds, done = await until(socket, "done")
        assert b"".join(base64.b64decode(m["audio"]) for m in sounds) == b"one two "
        assert done == {"type": "done", "id": "s", "duration": 1.0, "characters": 7}


async def test_live_transcription_gives_partial_and_final_texts(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, socket):
        start = {"type": "transcribe", "id": "t", "model": "whisper-1", "rate": 8000}
        await socket.send_json(start | {"prompt": "say=so"})
        await socket.send_bytes(tone(1))
        (partial,) = await until(socket, "partial")
        assert partial["id"] == "t" and partial["text"].startswith("so heard 16000")
        more = base64.b64encode(tone(1) + quiet(1)).decode()
        await socket.send_json({"type": "audio", "id": "t", "audio": more})
        messages = await until(socket, "final")
        assert "heard 48000" in " ".join(m["text"] for m in [*messages, *await finals(socket)])
        await socket.send_json({"type": "end", "id": "t"})
        done = (await until(socket, "done"))[-1]
        assert done["duration"] == 3.0 and "heard 48000" in done["text"]


async def finals(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """What has come already."""
    found = []
    with contextlib.suppress(asyncio.TimeoutError):
        while True:
            found.append(await socket.receive_json(timeout=0.3))
    return found


async def test_many_tasks_run_on_one_connection_and_one_is_cancelled(tmp_path: Path) -> None:
    async with talking(tmp_path) as (house, socket):
        slow = {"type": "speak", "id": "slow", "model": "mouth", "input": LONG}
        await socket.send_json(slow)
        await until(socket, "audio")
        await socket.send_json({"type": "speak", "id": "quick", "model": "mouth", "input": "x"})
        done = (await until(socket, "done"))[-1]
        assert done["id"] == "quick"
        await socket.send_json(slow)
        assert "already" in (await until(socket, "error"))[-1]["error"]["message"]
        await socket.send_json({"type": "cancel", "id": "slow"})
        assert (await until(socket, "cancelled"))[-1]["id"] == "slow"
        await house.becomes_idle()


async def test_connection_that_ends_cancels_what_runs_on_it(tmp_path: Path) -> None:
    async with talking(tmp_path) as (house, socket):
        await socket.send_json({"type": "speak", "id": "s", "model": "mouth", "input": LONG})
        await until(socket, "audio")
        await socket.close()
        await house.becomes_idle()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no json", "not JSON"),
        ("[1]", "object"),
        ({}, "'id' is missing"),
        ({"id": "a"}, "'type' is missing"),
        ({"id": "a", "type": "dance"}, "not known"),
        ({"id": 7, "type": "speak"}, "'id' must be a string"),
        ({"id": "a", "type": "speak", "model": "mouth"}, "'input' is missing"),
        ({"id": "a", "type": "speak", "model": "ears", "input": "x"}, "cannot speak"),
        ({"id": "a", "type": "transcribe", "model": "mouth"}, "cannot transcribe"),
        ({"id": "a", "type": "transcribe", "model": "ears", "rate": 1}, "'rate'"),
        ({"id": "a", "type": "audio", "audio": "!!!"}, "base64"),
        ({"id": "a", "type": "audio", "audio": "AAAA"}, "begin one"),
        ({"id": "a", "type": "cancel"}, "no task"),
        (b"\0\0", "begin one"),
    ],
)
async def test_wrong_message_is_answered_and_the_connection_goes_on(
    tmp_path: Path, message: Any, words: str
) -> None:
    async with talking(tmp_path) as (_, socket):
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_str(message if isinstance(message, str) else json.dumps(message))
        error = (await until(socket, "error"))[-1]
        assert words in error["error"]["message"]
        await socket.send_json({"type": "speak", "id": "b", "model": "mouth", "input": "x"})
        assert (await until(socket, "done"))[-1]["id"] == "b"


async def test_plain_request_and_other_peoples_pages_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        status, answer = await house.get("/v1/ws")
        assert status == 400 and "WebSocket" in answer["error"]["message"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await house.session.ws_connect(house.url + "/v1/ws", origin="https://evil.example")
        assert caught.value.status == 403
