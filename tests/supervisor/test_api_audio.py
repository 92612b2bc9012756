"""The audio endpoints against a fake that hears and speaks: forms, streams, every wrong input."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.supervisor.house import until
from tests.supervisor.served import Served, events, served

FILES: dict[str, dict[str, Any]] = {
    "ears": {"type": "stt", "tasks": ["transcribe"]},
    "mouth": {"type": "tts", "tasks": ["speak"]},
    "alpha": {},
}
HEAR, SPEAK = "/v1/audio/transcriptions", "/v1/audio/speech"


def form(data: bytes | None = b"sound", **fields: Any) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, value in ({"model": "ears"} | fields).items():
        for one in value if isinstance(value, list) else [value]:
            made.add_field(name.replace("__", "[]"), one)
    if data is not None:
        made.add_field("file", io.BytesIO(data), filename="a.wav", content_type="audio/wav")
    return made


async def hear(house: Served, data: Any = b"sound", path: str = HEAR, **fields: Any) -> Any:
    """(status, body as text)."""
    async with house.session.post(house.url + path, data=form(data, **fields)) as response:
        return response.status, await response.text()


def weighed(data: bytes) -> str:
    return f"heard {len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


async def test_upload_of_any_size_reaches_the_worker_whole(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        for size in (1, 1000, 300_000, 3_000_000):
            data = os.urandom(size)
            status, text = await hear(house, data, response_format="text")
            assert status == 200 and text.startswith(weighed(data))
        assert house.supervisor.gateway.spool.used_bytes == 0
        assert not list((tmp_path / "spool").iterdir()), "files without a name"


async def test_every_form_has_its_media_type(tmp_path: Path) -> None:
    kinds = {
        "json": "application/json",
        "verbose_json": "application/json",
        "text": "text/plain",
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
    }
    async with served(tmp_path, files=FILES) as house:
        for shape, kind in kinds.items():
            body = form(response_format=shape)
            async with house.session.post(house.url + HEAR, data=body) as response:
                assert (response.status, response.content_type) == (200, kind)
        status, text = await hear(house, path="/v1/audio/translations", response_format="text")
        assert status == 200 and text.startswith("heard")


async def test_transcript_streams_as_openai_streams_it(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        _, raw = await hear(house, b"abc", stream="true", prompt="say=first")
        *deltas, done = events(raw)
        assert {e["type"] for e in deltas} == {"transcript.text.delta"}
        assert done["type"] == "transcript.text.done"
        assert "".join(e["delta"] for e in deltas).strip() == done["text"]
        assert done["text"].startswith("first heard 3")
        assert done["usage"] == {"type": "duration", "seconds": 1}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"data": None}, "file", "missing"),
        ({"data": b""}, "file", "empty"),
        ({"model": ""}, "model", "empty"),
        ({"response_format": "mp3"}, "response_format", "one of json"),
        ({"temperature": "hot"}, "temperature", "number from 0 to 1"),
        ({"temperature": "2"}, "temperature", "number from 0 to 1"),
        ({"stream": "maybe"}, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, "stream", "json or text"),
        ({"language": "klingon"}, "language", "ISO 639-1"),
        ({"timestamp_granularities__": "word"}, "timestamp_granularities", "verbose_json"),
        (
            {"timestamp_granularities": ["word", "page"], "response_format": "verbose_json"},
            "timestamp_granularities",
            "word, segment",
        ),
        ({"include__": "logprobs", "response_format": "text"}, "include", "json"),
        ({"prompt": "x" * 20_000}, "prompt", "longer"),
        ({"model": ["ears", "mouth"]}, "model", "a string"),
    ],
)
async def test_wrong_field_is_a_400_that_names_it(
    tmp_path: Path, fields: dict[str, Any], param: str, words: str
) -> None:
    async with served(tmp_path, files=FILES) as house:
        body = form(**fields)
        async with house.session.post(house.url + HEAR, data=body) as response:
            answer = (await response.json())["error"]
            assert (response.status, answer["param"]) == (400, param)
            assert words in answer["message"]


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
async def test_what_is_no_form_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        status, answer = await house.post(HEAR, {"model": "ears"})
        assert status == 415 and "multipart/form-data" in answer["error"]["message"]
        for kind, body in (
            ("multipart/form-data", b"x"),
            ("multipart/form-data; boundary=b", b"no boundary in here"),
            ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="f'),
        ):
            async with house.session.post(
                house.url + HEAR, data=body, headers={"Content-Type": kind}
            ) as response:
                assert response.status == 400, body
                assert (await response.json())["error"]["message"]
        assert house.supervisor.gateway.spool.used_bytes == 0


async def test_models_that_cannot_are_named(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        status, text = await hear(house, model="alpha")
        assert status == 400 and "cannot transcribe" in text
        status, text = await hear(house, model="earz")
        assert status == 404 and "ears" in text
        status, answer = await house.post(SPEAK, {"model": "ears", "input": "a"})
        assert status == 400 and "cannot speak" in answer["error"]["message"]


async def test_too_large_upload_is_a_413_and_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES, max_upload="1MB") as house:
        status, text = await hear(house, b"x" * 8_000_000)
        assert status == 413 and "max_upload" in text

        async def endless() -> Any:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 100_000

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        async with house.session.post(house.url + HEAR, data=endless(), headers=headers) as r:
            assert r.status == 413
        assert house.supervisor.gateway.spool.used_bytes == 0


async def test_client_that_leaves_in_the_middle_of_an_upload_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.split(":")[2]))
        head = (
            f"POST {HEAR} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        )
        writer.write(head.encode() + b"x" * 1_000_000)
        await writer.drain()
        spool = house.supervisor.gateway.spool
        await until(lambda: spool.used_bytes > 500_000)
        writer.close()
        await until(lambda: spool.used_bytes == 0)
        del reader


async def test_client_that_leaves_cancels_the_transcription(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        body = form(prompt="slow=0.1 flood=600")
        asked = asyncio.create_task(house.session.post(house.url + HEAR, data=body))
        await until(lambda: house.busy() == 1)
        asked.cancel()
        await house.becomes_idle()
        await until(lambda: house.supervisor.gateway.spool.used_bytes == 0)


async def test_upload_is_sent_again_when_its_worker_dies(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        data = os.urandom(1_000_000)
        status, text = await hear(house, data, prompt="die_after_n=0")
        assert status == 502 and "third" in text
        assert house.supervisor.gateway.spool.used_bytes == 0
        asked = asyncio.create_task(hear(house, data, prompt="slow=0.3"))
        await until(lambda: house.busy() == 1)
        first = next(w for w in house.supervisor.pool.status()["workers"] if w["busy"])
        os.kill(first["pid"], 9)
        status, text = await asked
        assert status == 200 and weighed(data) in text


async def test_speech_comes_as_bytes_or_events(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        kinds = {"mp3": "audio/mpeg", "opus": "audio/ogg", "wav": "audio/wav", "pcm": "audio/pcm"}
        for shape, kind in kinds.items():
            body = {"model": "mouth", "input": "one two", "response_format": shape}
            async with house.session.post(house.url + SPEAK, json=body) as response:
                assert (response.status, response.content_type) == (200, kind)
                assert await response.read() == b"one two "
        _, raw = await house.post(SPEAK, {"model": "mouth", "input": "a b", "stream_format": "sse"})
        *deltas, done = events(raw)
        assert b"".join(base64.b64decode(e["audio"]) for e in deltas) == b"a b "
        assert done["type"] == "speech.audio.done" and done["usage"]["characters"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": " \n"}, "input"),
        ({"input": 7}, "input"),
        ({}, "input"),
        ({"input": "a", "speed": 5}, "speed"),
        ({"input": "a", "speed": "fast"}, "speed"),
        ({"input": "a", "response_format": "wma"}, "response_format"),
        ({"input": "a", "stream_format": "tape"}, "stream_format"),
        ({"input": "a", "voice": 7}, "voice"),
        ({"input": "a", "voice": {}}, "voice.id"),
        ({"input": "a", "voice": "nobody"}, "voice"),
        ({"input": "a" * 1_000_001}, "input"),
    ],
)
async def test_wrong_wish_for_speech_is_a_400_that_names_it(
    tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    async with served(tmp_path, files=FILES, max_body_bytes=1 << 22) as house:
        status, answer = await house.post(SPEAK, {"model": "mouth"} | body)
        assert (status, answer["error"]["param"]) == (400, param), answer


async def test_speech_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        body = {"model": "mouth", "input": "slow=0.05 one die_after_n=2 two three"}
        async with house.session.post(house.url + SPEAK, json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        status, answer = await house.post(SPEAK, {"model": "mouth", "input": "fail"})
        assert status == 400 and "failed on command" in answer["error"]["message"]


async def test_clients_of_openai_find_somebody_by_the_names_they_know(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES, voices={"boss": "mouth"}) as house:
        status, text = await hear(house, model="whisper-1")
        assert status == 200 and "heard 5" in text
        for voice in ("alloy", "boss", {"id": "mouth"}, None):
            body = {"model": "tts-1@5m", "input": "a", "voice": voice}
            status, answer = await house.post(SPEAK, body)
            assert (status, answer) == (200, "a ")
        _, found = await house.get("/v1/audio/voices")
        assert [v["id"] for v in found["data"]] == ["mouth"]
        assert found["names"]["alloy"] == found["names"]["boss"] == "mouth"
    async with served(tmp_path / "empty", files={"alpha": {}}) as house:
        status, answer = await house.post(SPEAK, {"model": "tts-1", "input": "a"})
        assert status == 404
        assert (await house.get("/v1/audio/voices"))[1]["names"] == {}


async def test_configured_alias_beats_the_stand_in(tmp_path: Path) -> None:
    own = {"other": {"aliases": ["whisper-1"]}}
    files = FILES | {"other": {"type": "stt", "tasks": ["transcribe"]}}
    async with served(tmp_path, files=files, models=own) as house:
        status, _ = await hear(house, model="whisper-1")
        loaded = [w["model"] for w in house.supervisor.pool.status()["workers"]]
        assert (status, loaded) == (200, ["other"])
