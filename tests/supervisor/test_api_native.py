"""Management endpoints, model listing, and what is answered when nothing fits."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import until
from tests.supervisor.served import chat_body, put_model, served
from uml.supervisor.serving import Serving

POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/load",
    "/load_model",
    "/models/load",
    "/unload",
    "/unload_model",
    "/models/unload",
    "/swap",
]
GETS = ["/v1/models", "/v1/models/alpha", "/status", "/health", "/ready", "/logs"]


def is_openai_error(answer: Any) -> bool:
    error = answer["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


# --- models --------------------------------------------------------------------------------


async def test_models_are_listed_with_what_is_known(tmp_path: Path) -> None:
    async with served(tmp_path, files={"beta": {}, "alpha": {"n_ctx": 512}}) as house:
        (tmp_path / "models" / "torn.gguf").write_bytes(b"GGUF")
        await house.chat("x", max_tokens=1)
        status, answer = await house.get("/v1/models")
        found = {m["id"]: m for m in answer["data"]}
        assert status == 200 and answer["object"] == "list"
        assert set(found) == {"alpha", "beta", "torn"}
        alpha = found["alpha"]
        assert alpha["object"] == "model" and alpha["owned_by"] == "uml"
        assert isinstance(alpha["created"], int)
        assert (alpha["state"], found["beta"]["state"]) == ("ready", "unloaded")
        assert (alpha["context_length"], alpha["format"]) == (512, "fake")
        assert found["torn"]["state"] == "broken" and found["torn"]["error"]
        status, one = await house.get("/v1/models/torn")
        assert status == 200 and one == found["torn"] | {"last_crash": None}
        status, answer = await house.chat("x", "torn")
        assert (status, answer["error"]["code"]) == (422, "invalid_model")


async def test_model_dropped_in_appears_and_one_that_left_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        assert (await house.get("/v1/models/new"))[0] == 404
        put_model(tmp_path, "new")
        assert (await house.get("/v1/models/new"))[0] == 200
        (tmp_path / "models/new.fake.json").unlink()
        assert (await house.get("/v1/models/new"))[0] == 404


async def test_model_ids_may_hold_a_slash(tmp_path: Path) -> None:
    settings = {"models": {"alpha": {"aliases": ["org/alpha"]}}}
    async with served(tmp_path, **settings) as house:
        for path in ("/v1/models/org/alpha", "/v1/models/org%2Falpha"):
            status, answer = await house.get(path)
            assert (status, answer["id"]) == (200, "alpha")


async def test_model_is_deleted_only_when_it_is_not_loaded(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        await house.chat("x", max_tokens=1)
        status, answer, _ = await house.ask("DELETE", "/v1/models/alpha")
        assert (status, answer["error"]["code"]) == (409, "conflict")
        await house.post("/unload", {"model": "alpha"})
        status, answer, _ = await house.ask("DELETE", "/v1/models/alpha")
        assert status == 200 and answer["deleted"] and len(answer["files"]) == 1
        assert not (tmp_path / "models/alpha.fake.json").exists()
        status, answer, _ = await house.ask("DELETE", "/v1/models/alpha")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


# --- load, unload, swap --------------------------------------------------------------------


async def test_load_status_and_unload(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        status, worker = await house.post("/load", {"model": "alpha", "keep_alive": "1h"})
        assert (status, worker["state"], worker["model"]) == (200, "ready", "alpha")
        status, found = await house.get("/status")
        assert found["url"] == house.url and found["pid"] == os.getpid() and found["version"]
        assert [w["model"] for w in found["workers"]] == ["alpha"]
        assert found["devices"][0]["name"] == "ram" and found["uptime_s"] >= 0
        status, answer = await house.post("/unload", {"model": "alpha"})
        (receipt,) = answer["receipts"]
        assert status == 200 and receipt["model"] == "alpha" and receipt["verified"] == "yes"
        assert (await house.post("/unload", {"model": "alpha"})) == (200, {"receipts": []})
        assert (await house.get("/status"))[1]["workers"] == []


async def test_load_streams_its_progress(tmp_path: Path) -> None:
    files = {"alpha": {"options": {"slow_load": 0.3}}, "bad": {"options": {"fail_load": "no"}}}
    async with served(tmp_path, files=files) as house:
        _, raw, headers = await house.ask("POST", "/load", {"model": "alpha", "stream": True})
        names = [line[7:] for line in raw.splitlines() if line.startswith("event: ")]
        data = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
        assert headers["Content-Type"].startswith("text/event-stream")
        assert names[-1] == "done" and set(names[:-1]) == {"progress"}
        fractions = [d["fraction"] for d in data[:-1] if d["fraction"] is not None]
        assert fractions == sorted(fractions) and len(fractions) > 3
        assert data[-1]["state"] == "ready"
        _, raw, _ = await house.ask("POST", "/load", {"model": "bad", "stream": True})
        assert '"load_failed"' in str(raw)


async def test_swap_brings_receipts_and_dry_runs_change_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {}, "beta": {}}) as house:
        await house.post("/load", {"model": "alpha"})
        for path in ("/swap", "/load"):
            status, plan = await house.post(path, {"model": "beta", "dry_run": True})
            assert status == 200 and plan["fits"] is True and plan["need_bytes"]["ram"] > 0
        assert [
            v["model"]
            for v in (await house.post("/swap", {"model": "beta", "dry_run": True}))[1]["victims"]
        ] == ["alpha"]
        assert [w["model"] for w in (await house.get("/status"))[1]["workers"]] == ["alpha"]
        status, answer = await house.post("/swap", {"model": "beta"})
        assert status == 200 and answer["model"] == "beta"
        assert [r["model"] for r in answer["receipts"]] == ["alpha"]
        assert [w["model"] for w in (await house.get("/status"))[1]["workers"]] == ["beta"]


async def test_unload_wants_one_model_or_all(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {}, "beta": {}}) as house:
        for body in ({}, {"model": "alpha", "all": True}, {"all": False}, {"model": 5}):
            status, answer = await house.post("/unload", body)
            assert (status, answer["error"]["param"]) == (400, "model")
        await house.post("/load", {"model": "alpha"})
        await house.post("/load", {"model": "beta"})
        _, answer = await house.post("/unload", {"all": True})
        assert {r["model"] for r in answer["receipts"]} == {"alpha", "beta"}


# --- looking -------------------------------------------------------------------------------


async def test_health_and_ready(tmp_path: Path) -> None:
    files = {"alpha": {"options": {"slow_load": 0.5}}}
    async with served(tmp_path, files=files, preload=["alpha", "no-such-model"]) as house:
        status, answer = await house.get("/health")
        assert (status, answer["service"], answer["status"]) == (200, "uml", "ok")
        assert (await house.get("/ready"))[0] == 503, "it is still preloading"
        await until(lambda: house.supervisor.gateway.ready)
        assert (await house.get("/ready"))[0] == 200
        assert [w["model"] for w in (await house.get("/status"))[1]["workers"]] == ["alpha"]
        assert "preload.failed" in (await house.get("/logs"))[1]


async def test_head_works_where_get_does(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        for path in GETS:
            async with house.session.head(house.url + path) as response:
                assert response.status == 200 and await response.read() == b""


async def test_get_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        await house.post("/load", {"model": "alpha"})
        for path in POSTS + GETS + ["/shutdown"]:
            status, _ = await house.get(path)
            assert status == (405 if path in [*POSTS, "/shutdown"] else 200), path
        assert [w["model"] for w in (await house.get("/status"))[1]["workers"]] == ["alpha"]
        assert not house.supervisor.gateway.stop.is_set()


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
async def test_bad_bodies_are_answered_in_openais_shape(tmp_path: Path, path: str) -> None:
    json_type = {"Content-Type": "application/json"}
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (b"{", json_type, 400),
        (b"[]", json_type, 400),
        (b"\xff", json_type, 400),
        (b'{"model": NaN}', json_type, 400),
        (b"[" * 10_000, json_type, 400),
        (b'{"model": "\\ud800"}', json_type, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"model=alpha", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"a": "' + b"x" * 70_000 + b'"}', json_type, 413),
        (b"{}", json_type, 400),
        (b'{"model": 5, "messages": 1}', json_type, 400),
        (b'{"model": "", "prompt": 1}', json_type, 400),
        (b'{"model": "nobody", "input": "x"}', json_type, 404),
    ]
    async with served(tmp_path, max_body_bytes=65536) as house:
        for body, headers, expected in cases:
            url = house.url + path
            async with house.session.post(url, data=body, headers=headers) as response:
                answer = await response.json()
                assert response.status == expected, (body[:40], answer)
                assert is_openai_error(answer)
                assert response.headers["X-Request-Id"]

        async def parts() -> Any:  # a body that does not say how long it is
            for _ in range(20):
                yield b" " * 8192

        async with house.session.post(
            house.url + path, data=parts(), headers=json_type
        ) as response:
            assert response.status == 413 and is_openai_error(await response.json())
        for method in ("PUT", "PATCH", "GET"):
            status, answer, headers = await house.ask(method, path)  # type: ignore[assignment]
            assert status == 405 and is_openai_error(answer) and headers["Allow"] == "POST"


async def test_missing_fields_are_named(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        for path, body, param in (
            ("/v1/chat/completions", {"messages": []}, "model"),
            ("/v1/chat/completions", {"model": "alpha"}, "messages"),
            ("/v1/completions", {"model": "alpha"}, "prompt"),
            ("/v1/embeddings", {"model": "alpha"}, "input"),
            ("/load", {}, "model"),
            ("/swap", {"model": None}, "model"),
        ):
            status, answer = await house.post(path, body)
            assert (status, answer["error"]["param"]) == (400, param)


async def test_unknown_path_is_not_found(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        for path in ("/", "/v1", "/v1/nope", "/v1/chat/completions/", "/../etc/passwd"):
            status, answer = await house.get(path)
            assert status == 404 and is_openai_error(answer)


async def test_a_bug_is_logged_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(Serving, "run", broken)
    async with served(tmp_path) as house:
        for stream in (True, False):
            body = chat_body("x", stream=stream)
            status, answer, headers = await house.ask("POST", "/v1/chat/completions", body)
            assert status == 500 and is_openai_error(answer)
            assert "secret" not in json.dumps(answer)
            assert headers["X-Request-Id"] in answer["error"]["message"]
            log = (await house.get("/logs"))[1]
            assert "a secret detail" in log and headers["X-Request-Id"] in log


async def test_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    files = {"alpha": {"options": {"slots": 1}}}
    async with served(tmp_path, files=files, queue_limit=1) as house:
        first = asyncio.create_task(house.chat("slow=0.02", max_tokens=10_000))
        await until(lambda: house.busy() == 1)
        second = asyncio.create_task(house.chat("x", max_tokens=1))
        await until(lambda: house.supervisor.pool.status()["waiting"])
        status, answer, headers = await house.ask("POST", "/v1/chat/completions", chat_body("x"))
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await house.becomes_idle()


async def test_new_work_is_refused_while_running_answers_finish(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        running = asyncio.create_task(house.chat("slow=0.02", max_tokens=30))
        await until(lambda: house.busy() == 1)
        ending = asyncio.create_task(house.supervisor.end(10))
        await asyncio.sleep(0)
        status, answer, headers = await house.ask("POST", "/v1/chat/completions", chat_body("x"))
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert headers["Retry-After"]
        assert (await house.get("/health"))[1]["status"] == "stopping"
        assert (await house.get("/ready"))[0] == 503
        status, answer = await running
        assert (status, answer["usage"]["completion_tokens"]) == (200, 30)
        await ending
