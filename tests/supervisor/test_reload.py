"""A new configuration while we serve: what it changes, what it restarts, and what it leaves be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.supervisor.house import until
from tests.supervisor.served import Served, put_model
from uml.supervisor import filewatch
from uml.supervisor.app import Supervisor
from uml.supervisor.config import Config, load_config


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the file are told by the test that is about that."""
    monkeypatch.setattr(filewatch, "_CALM_S", 1000.0)


class House(Served):
    """A server with a file. write: a new one, which is not taken in yet."""

    path: Path

    def write(self, text: str) -> None:
        self.path.write_text(text)

    async def reload(self, text: str, *, dry_run: bool = False) -> Any:
        self.write(text)
        status, answer = await self.post("/config/reload", {"dry_run": dry_run})
        assert status == 200, answer
        return answer

    def worker(self, model: str) -> dict[str, Any]:
        workers = self.supervisor.pool.status()["workers"]
        return next((w for w in workers if w["model"] == model), {"state": "gone", "pid": 0})

    def told(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.supervisor.events.recent if e["event"] == event]


@contextlib.asynccontextmanager
async def serving(home: Path, text: str = "", **facts: Any) -> AsyncIterator[House]:
    for name in ("alpha", "beta"):
        put_model(home, name, **facts)
    path = home / "uml.toml"
    path.write_text(text)
    overrides = {"home": str(home), "port": 0, "scan_default_stores": False}

    def read(text: str | None) -> Config:
        return load_config(path, env={}, overrides=overrides, text=text)

    supervisor = Supervisor(read(None), log=None, reread=read)
    try:
        url = await supervisor.start()
        async with aiohttp.ClientSession() as session:
            house = House(supervisor, url, session)
            house.path = path
            yield house
    finally:
        await supervisor.end(0)


CTX = '[models."alpha"]\nn_ctx = {}\n'


async def test_dry_run_says_what_would_happen_and_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as house:
        await house.chat("x", max_tokens=1)
        found = await house.reload(CTX.format(512), dry_run=True)
        assert found["applied"] is False
        assert found["restarts"] == [{"model": "alpha", "because": ["n_ctx"], "busy": 0}]
        assert found["changes"][0]["key"] == 'models."alpha".n_ctx'
        assert house.worker("alpha")["context"] == 4096
        assert house.supervisor.config.for_model("alpha").n_ctx is None


async def test_another_text_can_be_compared_and_not_taken_in(tmp_path: Path) -> None:
    async with serving(tmp_path, "keep_alive = 77") as house:
        await house.chat("x", max_tokens=1)
        body = {"dry_run": True, "toml": "keep_alive = 88\n" + CTX.format(512)}
        status, found = await house.post("/config/reload", body)
        assert status == 200 and found["restarts"][0]["model"] == "alpha"
        assert found["changes"][0]["old"] == 77 and found["changes"][0]["new"] == 88
        assert (await house.post("/config/reload", {"toml": "keep_alive = 88"}))[0] == 400
        wrong = {"dry_run": True, "toml": "keep_alive = "}
        assert (await house.post("/config/reload", wrong))[0] == 400
        assert house.supervisor.config.keep_alive_s == 77


async def test_only_the_changed_model_restarts_after_its_running_answers(tmp_path: Path) -> None:
    async with serving(tmp_path, options={"token_delay": 0.02, "slots": 1}) as house:
        await house.chat("x", "beta", max_tokens=1)
        running = asyncio.create_task(house.chat("x", max_tokens=30))
        await until(house.busy)
        before = {m: house.worker(m)["pid"] for m in ("alpha", "beta")}
        waiting = asyncio.create_task(house.chat("x", max_tokens=1))
        await until(lambda: house.worker("alpha")["waiting"])
        found = await house.reload(CTX.format(512))
        assert found["restarts"][0]["busy"] == 1
        assert house.worker("alpha")["state"] == "draining"
        status, answer = await running
        assert status == 200 and answer["usage"]["completion_tokens"] == 30, "not cut"
        assert (await waiting)[0] == 200
        await until(lambda: house.worker("alpha")["state"] == "ready")
        assert house.worker("alpha")["context"] == 512
        assert house.worker("alpha")["pid"] != before["alpha"]
        assert house.worker("beta")["pid"] == before["beta"]


async def test_idle_model_is_loaded_again_and_one_that_was_not_loaded_is_not(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as house:
        await house.chat("x", max_tokens=1)
        await house.reload(CTX.format(512) + '[models."beta"]\nn_ctx = 512\n')
        await until(lambda: house.worker("alpha").get("context") == 512)
        assert house.worker("beta")["state"] == "gone"
        await house.chat("x", "beta", max_tokens=1)
        assert house.worker("beta")["context"] == 512


async def test_request_that_waits_for_a_load_gets_the_new_one(tmp_path: Path) -> None:
    async with serving(tmp_path, options={"slow_load": 1.0}) as house:
        asking = asyncio.create_task(house.chat("x", max_tokens=2))
        await until(lambda: house.worker("alpha")["state"] == "loading")
        await house.reload('[models."alpha"]\nn_ctx = 512\noptions = {slow_load = 0}\n')
        status, _ = await asking
        assert status == 200 and house.worker("alpha")["context"] == 512
        assert len(house.told("worker.ready")) == 1, "the old load was not waited for"


async def test_request_that_cannot_be_served_any_more_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path, options={"slow_load": 1.0}) as house:
        asking = asyncio.create_task(house.chat("x", max_tokens=2))
        await until(lambda: house.worker("alpha")["state"] == "loading")
        await house.reload('[models."alpha"]\nbackend = "none-such"\n')
        status, answer = await asking
        assert status >= 400 and "backend" in answer["error"]["message"]
        await until(lambda: house.worker("alpha")["state"] == "gone")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = nine", "not TOML"),
        ("prt = 9", "did you mean port"),
        ('host = "0.0.0.0"', "api_key"),
        ("[models.alpha]\nsampling = {temprature = 1}", "temprature"),
        ("[models.alpha]\nn_ctx = 1", "n_ctx"),
    ],
)
async def test_bad_configuration_leaves_the_old_in_force_and_says_why(
    tmp_path: Path, text: str, says: str
) -> None:
    async with serving(tmp_path, "keep_alive = 77") as house:
        await house.chat("x", max_tokens=1)
        for dry_run in (True, False):
            house.write("keep_alive = 88\n" + text)
            status, answer = await house.post("/config/reload", {"dry_run": dry_run})
            assert status == 400 and answer["error"]["code"] == "invalid_config"
            assert says in answer["error"]["message"]
        (told,) = house.told("config.refused")
        assert says in told["reason"] and told["level"] == "error"
        assert house.supervisor.config.keep_alive_s == 77
        assert house.worker("alpha")["state"] == "ready"


async def test_a_file_that_is_gone_means_refused_not_defaults(tmp_path: Path) -> None:
    async with serving(tmp_path, "keep_alive = 77") as house:
        house.path.unlink()
        assert (await house.post("/config/reload", {}))[0] == 400
        assert house.supervisor.config.keep_alive_s == 77


async def test_what_takes_effect_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as house:
        await house.chat("x", max_tokens=1)
        pid = house.worker("alpha")["pid"]
        more = tmp_path / "more"
        put_model(more, "gamma")
        await house.reload(
            f'keep_alive = 50\nmax_loaded = 1\nqueue_limit = 3\nmodel_dirs = ["{more}/models"]\n'
            'log_level = "debug"\nreserve = {ram = 1000}\nbeat_overdue = 30\ndrain = 5\n'
            '[models."alpha"]\naliases = ["first"]\npinned = true\npriority = 7\n'
        )
        pool = house.supervisor.pool
        assert (await house.get("/v1/models/gamma"))[0] == 200
        assert "path=/v1/models/gamma" in (await house.get("/logs"))[1]
        assert (await house.chat("x", "first", max_tokens=1))[0] == 200
        worker = house.worker("alpha")
        assert worker["pid"] == pid and worker["pinned"]
        assert pool.scheduler.limits.queue == 3 and pool.config.beat_overdue_s == 30
        devices = (await house.get("/status"))[1]["devices"]
        ram = next(d for d in devices if d["name"] == "ram")
        assert ram["cap_bytes"] == ram["total_bytes"] - 1000
        status, answer = await house.chat("x", "beta", max_tokens=1)
        assert status == 409 and "pinned" in answer["error"]["message"], "max_loaded counts it"
        await house.reload("")
        assert (await house.chat("x", "beta", max_tokens=1))[0] == 200
        assert house.worker("alpha")["pid"] == pid
        assert (await house.chat("x", "first", max_tokens=1))[0] == 404


async def test_new_key_is_wanted_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as house:
        await house.reload('api_key = "k"')
        assert (await house.get("/status"))[0] == 401
        assert (await house.get("/status", Authorization="Bearer k"))[0] == 200


async def test_key_cannot_be_taken_from_a_server_that_others_reach(tmp_path: Path) -> None:
    """The address stays until the next start, whatever the file says of it."""
    text = 'host = "0.0.0.0"\napi_key = "k"\n'
    async with serving(tmp_path, text) as house:
        house.write('host = "127.0.0.1"\n')
        port = house.url.rpartition(":")[2]
        house.url = f"http://127.0.0.1:{port}"
        status, answer = await house.post("/config/reload", {}, Authorization="Bearer k")
        assert status == 400 and "0.0.0.0" in answer["error"]["message"]
        assert (await house.get("/status"))[0] == 401


async def test_what_waits_for_the_start_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as house:
        found = await house.reload('fake_device = "fake0:1000:/nowhere"')
        assert found["changes"][0]["takes"] == "start"
        assert house.told("config.waits_for_start")[0]["key"] == "fake_device"
        assert len((await house.reload("", dry_run=True))["changes"]) == 0


async def test_newly_preloaded_models_are_loaded(tmp_path: Path) -> None:
    async with serving(tmp_path) as house:
        await house.reload('preload = ["beta"]')
        await until(lambda: house.worker("beta")["state"] == "ready")


async def test_change_of_the_file_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filewatch, "_CALM_S", 0.02)
    async with serving(tmp_path) as house:
        house.write("keep_alive = 88")
        await until(lambda: house.supervisor.config.keep_alive_s == 88)
        house.write("keep_alive = nonsense")
        await until(lambda: house.told("config.refused"))
        assert house.supervisor.config.keep_alive_s == 88


async def test_change_of_the_file_waits_for_a_word_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filewatch, "_CALM_S", 0.02)
    async with serving(tmp_path, "reload_on_change = false") as house:
        noticed = []
        monkeypatch.setattr(house.supervisor._watch, "_changed", lambda: noticed.append(1))
        changed = house.supervisor._file_changed
        house.write("reload_on_change = false\nkeep_alive = 88")
        await until(lambda: noticed)
        changed()
        assert house.supervisor.config.keep_alive_s == 300
        await house.post("/config/reload", {})
        assert house.supervisor.config.keep_alive_s == 88


async def test_without_a_way_to_read_it_anew_that_is_said(tmp_path: Path) -> None:
    given = {"home": str(tmp_path), "port": 0, "scan_default_stores": False}
    supervisor = Supervisor(load_config(env={}, overrides=given), log=None)
    try:
        url = await supervisor.start()
        async with aiohttp.ClientSession() as session:
            status, answer = await Served(supervisor, url, session).post("/config/reload", {})
            assert status == 400 and "no file" in answer["error"]["message"]
    finally:
        await supervisor.end(0)


async def test_reloads_during_swaps_lose_no_request(tmp_path: Path) -> None:
    """Whatever comes together: each request is answered."""
    async with serving(tmp_path, "max_loaded = 1", options={"token_delay": 0.002}) as house:
        asking = [
            asyncio.create_task(house.chat("x", ("alpha", "beta")[i % 2], max_tokens=5))
            for i in range(40)
        ]
        for number in range(8):
            await asyncio.sleep(0.05)
            text = CTX.format(512 + 16 * number)
            await house.reload(f"max_loaded = {1 + number % 2}\nmax_wait = {number % 3}\n" + text)
        answers = await asyncio.gather(*asking)
        assert [status for status, _ in answers] == [200] * 40, answers
