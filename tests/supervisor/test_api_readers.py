"""Streams over HTTP: what a reader is told, and one that is slow, silent or gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.supervisor.house import until
from tests.supervisor.served import Served, chat_body, events, served
from uml.supervisor import calls
from uml.supervisor.api import sse


async def raw_request(
    house: Served, body: dict[str, Any], sock: socket.socket | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of our own, to read partly or not at all."""
    url = urlsplit(house.url)
    where: dict[str, Any] = {"sock": sock} if sock else {"host": url.hostname, "port": url.port}
    reader, writer = await asyncio.open_connection(**where)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    return reader, writer


async def stuck_request(house: Served, body: dict[str, Any]) -> Any:
    """A client with a small buffer that reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    url = urlsplit(house.url)
    await asyncio.get_running_loop().sock_connect(sock, (url.hostname, url.port))
    reader, writer = await raw_request(house, body, sock=sock)
    writer.transport.pause_reading()
    return reader, writer


async def test_stream_tells_of_the_load_in_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HOLD_S", 0.05)
    monkeypatch.setattr(sse, "COMMENT_S", 0.05)
    async with served(tmp_path, files={"alpha": {"options": {"slow_load": 0.6}}}) as house:
        body = chat_body("who", max_tokens=1, stream=True)
        async with house.session.post(house.url + "/v1/chat/completions", json=body) as response:
            assert response.headers["X-Model-State"] in ("starting", "loading", "queued")
            text = await response.text()
    comments = [line for line in text.splitlines() if line.startswith(": ")]
    assert any(c.startswith(": loading ") and c.endswith("%") for c in comments), comments
    assert events(text)[-1] == "[DONE]"
    assert text.index("data:") > text.rindex("\n: loading")


async def test_stream_that_fails_early_has_its_proper_status(tmp_path: Path) -> None:
    models = {"alpha": {}, "broken": {"options": {"fail_load": "no such luck"}}}
    async with served(tmp_path, files=models) as house:
        status, answer = await house.chat("fail", stream=True)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        status, answer = await house.chat("x", "broken", stream=True)
        assert (status, answer["error"]["code"]) == (500, "load_failed")
        assert "no such luck" in answer["error"]["message"]


async def test_stream_that_fails_late_ends_with_an_error_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HOLD_S", 0.05)
    slow = {"options": {"slow_load": 0.3, "fail_load": "no such luck"}}
    async with served(tmp_path, files={"alpha": {}, "slow": slow}) as house:
        for model, text, code in (
            ("slow", "x", "load_failed"),
            ("alpha", "slow=0.1 die_after_n=3", "worker_died"),
        ):
            status, raw, _ = await house.ask(
                "POST", "/v1/chat/completions", chat_body(text, model, stream=True)
            )
            assert status == 200
            last = events(raw)[-1]
            assert last["error"]["code"] == code and "[DONE]" not in raw
        assert (await house.chat("who", max_tokens=1))[0] == 200, "the next request works"


async def test_unload_with_force_ends_a_stream_with_an_error_event(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        body = chat_body("slow=0.05", max_tokens=10_000, stream=True)
        async with house.session.post(house.url + "/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"tok1")
            status, answer = await house.post("/unload", {"model": "alpha", "force": True})
            assert status == 200 and answer["receipts"][0]["verified"] == "yes"
            rest = await response.text()
        assert "error" in events("data: {}\n" + rest)[-1] and "[DONE]" not in rest


async def test_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        for stream in (True, False):
            body = chat_body("slow=0.02", max_tokens=100_000, stream=stream)
            reader, writer = await raw_request(house, body)
            if stream:
                await reader.readuntil(b"tok1")
            await until(lambda: house.busy() == 1)
            writer.close()
            await house.becomes_idle()


async def test_client_that_leaves_while_it_waits_is_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {"options": {"slow_load": 30}}}) as house:
        _, writer = await raw_request(house, chat_body("x", stream=True))
        await until(lambda: house.supervisor.pool.status()["workers"])
        writer.close()
        await until(lambda: not house.supervisor.pool.status()["workers"])


async def test_slow_reader_holds_back_the_worker_and_is_cut_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_READER_STALL_S", 0.3)
    monkeypatch.setattr(sse, "READER_STALL_S", 0.3)
    async with served(tmp_path) as house:
        _, writer = await stuck_request(house, chat_body("flood=1000000", stream=True))
        await until(lambda: house.busy() == 1)
        before = house.supervisor.pool.status()["workers"][0]["memory_bytes"]["ram"]
        await house.becomes_idle()
        assert (await house.chat("who", max_tokens=1))[0] == 200
        after = house.supervisor.pool.status()["workers"][0]["memory_bytes"]["ram"]
        assert after - before < 64 << 20
        writer.close()


async def test_reader_that_stops_after_the_end_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "READER_STALL_S", 0.3)
    monkeypatch.setattr(calls, "_BACKLOG", 1 << 30)  # the pool finds no reader slow
    async with served(tmp_path) as house:
        with house.supervisor.events.subscribe() as told:
            _, writer = await stuck_request(house, chat_body("flood=20000", stream=True))
            await house.becomes_idle()
            while (event := await asyncio.wait_for(told.get(), 15))["event"] != "http.request":
                pass
        assert event["status"] == 499
        writer.close()


async def test_many_streams_at_once_do_not_mix(tmp_path: Path) -> None:
    models = {"alpha": {"options": {"slots": 64}}}
    async with served(tmp_path, files=models) as house:

        async def one(number: int) -> str:
            body = chat_body(f"say=word{number} slow=0.002", max_tokens=20, stream=True)
            _, raw, _ = await house.ask("POST", "/v1/chat/completions", body)
            *chunks, done = events(raw)
            assert done == "[DONE]"
            ids = {c["id"] for c in chunks}
            assert len(ids) == 1
            return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)

        texts = await asyncio.gather(*(one(i) for i in range(50)))
    tokens = "".join(f"tok{i} " for i in range(1, 20))
    assert texts == [f"word{i} {tokens}" for i in range(50)]


async def test_prompts_of_one_request_whose_worker_dies_are_done_again_each_whole(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as house:
        body = {"model": "alpha", "prompt": ["say=x", "say=y slow=0.05"], "max_tokens": 12}
        asking = asyncio.create_task(house.post("/v1/completions", body))
        await until(lambda: house.busy() == 1)  # the quick one is answered
        (worker,) = house.supervisor.pool.crew.workers.values()
        os.kill(worker.pid, signal.SIGKILL)
        status, answer = await asking
    assert status == 200
    rest = [f"tok{i}" for i in range(1, 12)]
    assert [c["text"].split() for c in answer["choices"]] == [["x", *rest], ["y", *rest]]
