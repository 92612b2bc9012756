"""GET /logs, /logs/stream, /events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import until
from tests.supervisor.served import served

PRINTS = {"alpha": {"options": {"print_to_stdout": True}}}


async def test_logs_of_ourselves_and_of_a_worker(tmp_path: Path) -> None:
    async with served(tmp_path, files=PRINTS) as house:
        await house.post("/load", {"model": "alpha"})
        status, text, headers = await house.ask("GET", "/logs?lines=3")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        assert "worker.ready" in text and len(text.splitlines()) == 3
        assert (await house.get("/logs?lines=0"))[1] == ""
        status, text = await house.get("/logs?model=alpha&lines=2")
        assert text == "stray output of a C library\n" * 2
        assert (await house.get("/logs?lines=many"))[0] == 400
        assert (await house.get("/logs?model=nobody"))[0] == 404
        assert (await house.get("/logs?format=xml"))[0] == 400


async def test_each_decision_is_one_line_with_its_reason(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {}, "beta": {}}, max_loaded=1) as house:
        for model in ("alpha", "beta"):
            assert (await house.chat("x", model, max_tokens=1))[0] == 200
        lines = (await house.get("/logs?format=json"))[1].splitlines()
        told = [json.loads(line) for line in lines]
        names = [e["event"] for e in told if e.get("model") == "alpha"]
        assert names == ["worker.loading", "worker.ready", "worker.killing", "worker.released"]
        killing = next(e for e in told if e["event"] == "worker.killing")
        assert killing["reason"] == "evicted for beta"
        loading = next(e for e in told if e["event"] == "worker.loading")
        assert loading["bytes"]["ram"] > 0 and "declared" in loading["reason"]


async def test_refused_request_is_logged_with_the_reason(tmp_path: Path) -> None:
    files = {"alpha": {"options": {"fail_load": "no luck"}}}
    async with served(tmp_path, files=files) as house:
        assert (await house.chat("x"))[0] == 500
        text = (await house.get("/logs"))[1]
        line = next(line for line in text.splitlines() if "request.refused" in line)
        assert "code=load_failed" in line and "no luck" in line


async def test_own_log_goes_on_after_its_last_lines(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        async with house.session.get(house.url + "/logs/stream?format=json&lines=1") as response:
            first = json.loads(await response.content.readline())
            assert first["event"] == "supervisor.started"
            await house.chat("x", max_tokens=1)
            found: list[Any] = []
            while "worker.ready" not in found:
                found.append(json.loads(await response.content.readline())["event"])
            assert "http.request" not in found, "it had not ended when the worker was ready"
            ending = asyncio.create_task(house.supervisor.end(0))
            await asyncio.wait_for(response.content.read(), 10)
            await ending


async def test_log_of_a_model_goes_on_through_its_workers(tmp_path: Path) -> None:
    files = {**PRINTS, "beta": PRINTS["alpha"]}
    async with served(tmp_path, files=files) as house:
        url = house.url + "/logs/stream?model=alpha&lines=0&format=json"
        async with house.session.get(url) as response:
            for _ in range(2):
                await house.post("/load", {"model": "beta"})
                await house.post("/load", {"model": "alpha"})
                line = json.loads(await response.content.readline())
                assert line == {"model": "alpha", "line": "stray output of a C library"}
                await house.post("/unload", {"all": True})


async def test_events_are_streamed_and_end_with_the_server(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        async with house.session.get(house.url + "/events") as response:
            await response.content.readuntil(b"\n\n")
            await house.chat("x", max_tokens=1)
            await response.content.readuntil(b"event: worker.ready\n")
            data = json.loads((await response.content.readline())[6:])
            assert data["model"] == "alpha"
            ending = asyncio.create_task(house.supervisor.end(0))
            await asyncio.wait_for(response.content.read(), 10)
            await ending


@pytest.mark.parametrize("path", ["/logs/stream", "/events"])
async def test_reader_that_leaves_is_forgotten(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as house:
        events = house.supervisor.events
        async with house.session.get(house.url + path) as response:
            await response.content.readany()
            assert len(events._queues) == 1
        for _ in range(500):
            events.emit("tick")
            if not events._queues:
                break
            await asyncio.sleep(0.01)
        assert not events._queues


async def test_log_level_decides_what_is_kept(tmp_path: Path) -> None:
    async with served(tmp_path, log_level="debug", log_format="json") as house:
        await house.get("/health")
        assert "path=/health" in (await house.get("/logs"))[1]


async def test_live_events_say_each_second_what_runs(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {"options": {"token_delay": 0.02}}}) as house:
        talking = asyncio.create_task(house.chat("x", max_tokens=10_000))
        await until(house.busy)
        looks = []
        async with house.session.get(house.url + "/events?live=1") as response:
            for _ in range(2):
                await response.content.readuntil(b"event: live\n")
                looks.append(json.loads((await response.content.readline())[6:]))
        first, second = looks
        assert 0.9 < second["at"] - first["at"] < 3
        (worker,) = second["workers"]
        assert worker["model"] == "alpha" and worker["busy"] == 1
        assert 5 < worker["pieces_per_s"] <= 60
        assert second["devices"] and second["usage"]["alpha"]["loads"] == 1
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        live = house.supervisor.gateway.live
        await until(lambda: live._task is None)


async def test_those_who_watch_share_one_look(tmp_path: Path) -> None:
    async with served(tmp_path) as house, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            get = house.session.get(house.url + "/events?live=1")
            response = await stack.enter_async_context(get)
            await response.content.readuntil(b"event: live\n")
        asked = []
        status = house.supervisor.gateway.status
        house.supervisor.gateway.status = lambda: asked.append(1) or status()  # type: ignore[method-assign, func-returns-value]
        await response.content.readuntil(b"event: live\n")
        assert len(asked) == 1
