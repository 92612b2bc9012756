"""Inference over HTTP with the real pool and a real worker process."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.supervisor.house import until
from tests.supervisor.served import chat_body, events, served

EMBEDDER = {"type": "embedding", "tasks": ["embed"]}


async def test_chat_answers_with_the_id_asked_for(tmp_path: Path) -> None:
    settings = {"models": {"alpha": {"aliases": ["gpt-4o"]}}}
    async with served(tmp_path, **settings) as house:
        status, answer, headers = await house.ask(
            "POST",
            "/v1/chat/completions",
            chat_body("who", "gpt-4o", max_tokens=3),
            X_Request_Id="mine-1",
        )
    assert status == 200 and headers["X-Request-Id"] == "mine-1"
    assert answer["model"] == "gpt-4o"
    assert answer["choices"][0]["message"]["content"] == "alpha tok1 tok2 "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 4
    assert headers["X-Model-State"] == "loading", "it had to wait for its model"


async def test_chat_streams_and_the_connection_lives_on(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        for _ in range(2):
            body = chat_body("who", max_tokens=3, stream=True)
            async with house.session.post(house.url + "/v1/chat/completions", json=body) as r:
                assert r.content_type == "text/event-stream"
                assert r.headers["Cache-Control"] == "no-cache"
                text = await r.text()
                connection = r.connection
            *chunks, done = events(text)
            deltas = [c["choices"][0]["delta"].get("content", "") for c in chunks]
            assert "".join(deltas) == "alpha tok1 tok2 " and done == "[DONE]"
        assert connection is None or not connection.transport.is_closing()
        assert len(house.session.connector._conns) == 1  # type: ignore[union-attr]


async def test_chat_streams_to_a_client_of_http_1_0(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        url = urlsplit(house.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        data = json.dumps(chat_body("who", max_tokens=2, stream=True)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        raw = (await reader.read()).decode()  # ends by itself
        writer.close()
    head_text, _, body = raw.partition("\r\n\r\n")
    assert "chunked" not in head_text.lower()
    assert body.startswith("data: {") and body.endswith("data: [DONE]\n\n")


async def test_completions_of_several_prompts_keep_their_order(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        body = {"model": "alpha", "prompt": ["say=a", "say=b slow=0.01", "say=c"], "max_tokens": 1}
        status, answer = await house.post("/v1/completions", body)
        _, _, headers = await house.ask("POST", "/v1/completions", body | {"stream": True})
        async with house.session.post(
            house.url + "/v1/completions", json=body | {"stream": True}
        ) as response:
            *chunks, done = events(await response.text())
    assert status == 200 and answer["object"] == "text_completion"
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a "), (1, "b "), (2, "c ")]
    assert answer["usage"]["completion_tokens"] == 3
    assert headers["Content-Type"].startswith("text/event-stream") and done == "[DONE]"
    texts = {c["choices"][0]["index"]: "" for c in chunks}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "a ", 1: "b ", 2: "c "}


async def test_completions_fail_as_one_when_one_prompt_fails(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        body = {"model": "alpha", "prompt": ["slow=0.02", "fail"], "max_tokens": 10_000}
        status, answer = await house.post("/v1/completions", body)
        assert status == 400 and answer["error"]["message"] == "failed on command"
        await house.becomes_idle()


async def test_embeddings_of_a_large_batch_are_complete_and_in_order(tmp_path: Path) -> None:
    inputs = [f"text {i}" for i in range(600)]
    async with served(tmp_path, files={"e": EMBEDDER}) as house:
        status, many = await house.post("/v1/embeddings", {"model": "e", "input": inputs})
        _, one = await house.post("/v1/embeddings", {"model": "e", "input": inputs[433]})
        _, tokens = await house.post("/v1/embeddings", {"model": "e", "input": [[1, 2], [3]]})
    assert status == 200 and [d["index"] for d in many["data"]] == list(range(600))
    assert many["data"][433]["embedding"] == one["data"][0]["embedding"]
    assert many["data"][432]["embedding"] != one["data"][0]["embedding"]
    assert many["usage"]["prompt_tokens"] == 1200 and len(tokens["data"]) == 2


async def test_model_of_the_wrong_type_is_refused_before_any_load(tmp_path: Path) -> None:
    async with served(tmp_path, files={"e": EMBEDDER, "alpha": {"tasks": ["chat"]}}) as house:
        for path, body in (
            ("/v1/chat/completions", chat_body("x", "e")),
            ("/v1/completions", {"model": "e", "prompt": "x"}),
            ("/v1/embeddings", {"model": "alpha", "input": "x"}),
        ):
            status, answer = await house.post(path, body)
            assert (status, answer["error"]["code"]) == (400, "task_not_supported")
            assert answer["error"]["param"] == "model"
        assert house.supervisor.pool.status()["workers"] == []


async def test_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        status, answer = await house.chat("x", "alpah")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "alpha" in answer["error"]["message"] and answer["error"]["param"] == "model"


async def test_keep_alive_is_taken_from_body_header_and_name(tmp_path: Path) -> None:
    async with served(tmp_path) as house:

        async def until_of(body: dict[str, Any], **headers: str) -> float | None:
            status, answer = await house.post("/v1/chat/completions", body, **headers)
            assert status == 200 and answer["model"] == "alpha"
            await house.becomes_idle()
            (worker,) = house.supervisor.pool.status()["workers"]
            return None if worker["until"] is None else worker["until"] - time.time()

        body = chat_body("x", max_tokens=1)
        assert 3500 < (await until_of(body | {"keep_alive": "1h"}) or 0) < 3601
        assert 1700 < (await until_of(body, X_Keep_Alive="30m") or 0) < 1801
        assert 500 < (await until_of(body | {"model": "alpha@10m"}) or 0) < 601
        assert await until_of(body | {"keep_alive": -1}) is None
        status, answer = await house.post("/v1/chat/completions", body | {"keep_alive": "soon"})
        assert (status, answer["error"]["param"]) == (400, "keep_alive")
        await house.post("/v1/chat/completions", body | {"keep_alive": 0})
        await until(lambda: not house.supervisor.pool.status()["workers"])


async def test_num_ctx_loads_with_that_context(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {"n_ctx": 32768}}) as house:
        await house.chat("x", max_tokens=1, options={"num_ctx": 8192})
        (worker,) = house.supervisor.pool.status()["workers"]
        assert worker["context"] >= 8192
        status, answer = await house.chat("x", num_ctx="many")
        assert (status, answer["error"]["param"]) == (400, "num_ctx")
