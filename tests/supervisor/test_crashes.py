"""What is left of a worker that failed: a report, its cause in /status, and a second chance."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import House, house, until
from uml.protocol.errors import LoadFailed, UmlError, Unavailable, WorkerDied
from uml.supervisor import crashes
from uml.supervisor.breaker import Breaker
from uml.supervisor.crashes import _masked


def reports(home: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((home / "crashes").glob("*.json"))]


async def test_report_says_what_was_known_when_the_worker_died(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(WorkerDied):
            await h.ask(h.model("a", options={"slots": 2}), "die_after_n=1 say=private")
        (report,) = await until(lambda: reports(tmp_path))
        assert report["model"] == "a" and "the worker of a ended" in report["cause"]
        assert report["state"] == "ready" and report["busy"] == 1
        assert report["files"] == [str(tmp_path / "models" / "a.fake.json")]
        assert report["options"]["slots"] == 2 and report["lease_bytes"]["ram"] > 0
        assert report["versions"]["fake"] == {"fake": "1"} and report["versions"]["uml"]
        assert any(d["name"] == "ram" and d["free_bytes"] > 0 for d in report["devices"])
        assert "worker.ready" in [e["event"] for e in report["events"]]
        assert "private" not in json.dumps(report), "nothing of a request is in it"
        (path,) = (tmp_path / "crashes").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        found = crashes.last(tmp_path, "a")
        assert found and found["report"] == str(path) and found["cause"] == report["cause"]
        assert crashes.last(tmp_path, "b") is None


async def test_report_ends_with_what_the_worker_said_last(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(LoadFailed):
            await h.ask(h.model("a", options={"crash_on_load": True}))
        await until(lambda: len(reports(tmp_path)) == 2)  # a load is tried twice
        assert all(r["stderr"][-1] == "about to crash" for r in reports(tmp_path))


async def test_no_report_of_a_worker_that_was_sent_away(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.ask(h.model("a"))
        await h.pool.commands.unload("a")
        assert not (tmp_path / "crashes").exists()


async def test_only_the_last_reports_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, "_KEPT", 4)
    monkeypatch.setattr(crashes, "_OF_ONE", 2)
    folder = tmp_path / "crashes"
    folder.mkdir()
    for number, name in enumerate("abcaaa"):
        (folder / f"20260101-00000{number}-{name}.json").write_text("{}")
    async with house(tmp_path) as h:
        with pytest.raises(WorkerDied):
            await h.ask(h.model("a"), "die_after_n=1")
    names = [path.stem for path in sorted(folder.iterdir())]
    assert [n.rpartition("-")[2] for n in names] == ["b", "c", "a", "a"]
    assert names[2] == "20260101-000005-a" and names[3] > "20260102"


def test_secrets_are_masked() -> None:
    found = _masked(
        {
            "api_key": "x",
            "options": {"hf_token": "y", "n_tokens": 3, "cache_type_k": "f16"},
            "stderr": [
                "Authorization: Bearer abc.def",
                "used hf_abcdefghijklmnopqrstuvwx",
                "at https://me:pw@host/x",
                "our own key is s3cr3t",
            ],
        },
        ["s3cr3t"],
    )
    text = json.dumps(found)
    for secret in ("abc.def", "hf_abc", "me:pw", "s3cr3t", '"x"', '"y"'):
        assert secret not in text
    assert found["options"] == {"hf_token": "***", "n_tokens": 3, "cache_type_k": "f16"}


async def test_a_disk_without_room_costs_the_report_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crashes.Crashes, "_save", full)
    async with house(tmp_path) as h:
        a = h.model("a")
        with pytest.raises(WorkerDied):
            await h.ask(a, "die_after_n=1")
        assert (await h.ask(a)).text.startswith("a ")
        await until(lambda: any(e["event"] == "crash.not_written" for e in h.events.recent))


# --- failing again and again --------------------------------------------------------------


def test_pauses_double_up_to_five_minutes_and_success_forgets() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(2):
        breaker.failed("m", LoadFailed("no"), now)
        assert breaker.refusal("m", now) is None
    for _ in range(8):
        breaker.failed("m", LoadFailed("no"), now)
        pauses.append(breaker.failing(now)["m"].until - now)
        refused = breaker.refusal("m", now)
        assert isinstance(refused, Unavailable) and refused.retry_after_s == pauses[-1]
        now += pauses[-1]
        assert breaker.refusal("m", now) is None, "half-open"
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    breaker.forget("m")
    breaker.failed("m", LoadFailed("no"), now)
    assert breaker.refusal("m", now) is None


def test_a_failure_long_after_the_last_one_is_a_first_one() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed("m", LoadFailed("no"), 0.0)
    assert breaker.refusal("m", 9.0) and not breaker.refusal("m", 11.0)
    breaker.failed("m", LoadFailed("no"), 1000.0)
    assert breaker.refusal("m", 1000.0) is None


async def test_failed_model_says_why_with_the_end_of_its_stderr(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"crash_on_load": True})
        while True:
            try:
                await h.ask(a)
            except Unavailable as e:
                assert e.retry_after_s and 0 < e.retry_after_s <= 10 and "137" in e.message
                break
            except LoadFailed:
                pass
        await until(lambda: h.pool.status()["failed"][0]["report"])
        (failed,) = h.pool.status()["failed"]
        assert failed["model"] == "a" and failed["state"] == "failed"
        assert "137" in failed["cause"] and failed["stderr"][-1] == "about to crash"
        assert json.loads(Path(failed["report"]).read_text())["cause"] == failed["cause"]
        told = [e for e in h.events.recent if e["event"] == "model.failed"]
        assert len(told) == 1 and told[0]["model"] == "a" and told[0]["retry_in_s"] <= 10


def killed(h: House, model: str) -> int:
    pid = int(h.worker(model)["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_pinned_model_comes_back_at_once_and_others_on_demand(tmp_path: Path) -> None:
    async with house(tmp_path, models={"a": {"pinned": True}}) as h:
        for name in ("a", "b"):
            await h.ask(h.model(name))
        pid = killed(h, "a")
        killed(h, "b")
        await until(lambda: h.worker("a")["state"] == "ready" and h.worker("a")["pid"] != pid)
        assert h.worker("b")["state"] == "gone"
        (told,) = (e for e in h.events.recent if e["event"] == "model.restarting")
        assert told["model"] == "a" and "pinned" in told["reason"]


async def test_pinned_model_that_cannot_load_is_tried_again_after_its_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uml.supervisor.breaker._FIRST_S", 0.2)
    async with house(tmp_path, models={"a": {"pinned": True}}) as h:
        await h.ask(h.model("a"))
        file = Path(h.registry.find("a").file.path)
        good = file.read_text()
        h.model("a", options={"fail_load": "not today"})
        killed(h, "a")
        await until(lambda: h.pool.failing())
        file.write_text(good)
        await until(lambda: h.worker("a")["state"] == "ready")


async def test_keeper_gives_up_what_cannot_help(tmp_path: Path) -> None:
    async with house(tmp_path, models={"a": {"pinned": True}}) as h:
        await h.ask(h.model("a"))
        (tmp_path / "models" / "a.fake.json").unlink()
        killed(h, "a")
        await until(lambda: any(e["event"] == "model.not_restarted" for e in h.events.recent))
        assert not h.pool.keeper._loading or await asyncio.sleep(0.05) is None
        assert not h.pool.keeper._loading


async def test_end_does_not_wait_for_a_model_that_is_to_come_back(tmp_path: Path) -> None:
    async with house(tmp_path, models={"a": {"pinned": True}}) as h:
        await h.ask(h.model("a", options={"slow_load": 0.2}))
        killed(h, "a")
        await until(lambda: h.worker("a")["state"] in ("starting", "loading"))
        await asyncio.wait_for(h.pool.close(0), 5)


def test_every_error_has_its_own_detail() -> None:
    assert UmlError("a").detail is not UmlError("b").detail
