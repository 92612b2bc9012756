"""Models come, serve, swap and go: real workers, real kills, a fake device."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import MB, Reader, chat, house, until
from uml.protocol.errors import (
    BadRequest,
    Cancelled,
    DoesNotFit,
    TaskNotSupported,
)
from uml.protocol.tasks import Rerank
from uml.supervisor import machine


async def test_request_loads_the_model_and_streams(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        reader = await h.ask(h.model("a"), "who", 3)
        assert reader.text == "a tok1 tok2 "
        assert "starting" in reader.states and "loading" in reader.states
        worker = h.worker("a")
        assert worker["state"] == "ready" and worker["busy"] == 0 and worker["until"]
        assert h.registry.load_seconds("a")


async def test_many_requests_share_one_load(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slots": 2})
        readers = await asyncio.gather(*(h.ask(a, f"say=n{i}", 2) for i in range(9)))
        assert [r.text for r in readers] == [f"n{i} tok1 " for i in range(9)]
        assert len(h.pool.status()["workers"]) == 1


async def test_swap_on_a_device_with_room_for_one(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        models = [h.model(n, weights_bytes=70 * MB, device="fake0") for n in ("a", "b")]
        for round_ in range(4):
            model = models[round_ % 2]
            assert (await h.ask(model)).text.startswith(model.id)
            used = sum(f.stat().st_size for f in device.iterdir())
            assert used == 70 * MB, "never both, always one"
        receipts = h.pool.status()["receipts"]
        assert len(receipts) == 3 and all(r["verified"] == "yes" for r in receipts)
        assert all(r["freed"]["fake0"] == 70 * MB for r in receipts)


async def test_running_answers_are_not_cut_by_a_swap(tmp_path: Path) -> None:
    async with house(tmp_path, max_loaded=1, max_wait="0s") as h:
        a, b = h.model("a"), h.model("b")
        long = asyncio.create_task(h.ask(a, "slow=0.05", 20))
        await until(lambda: any(w["busy"] for w in h.pool.status()["workers"]))
        other = await h.ask(b)
        assert other.text.startswith("b")
        assert (await long).text.split()[-1] == "tok19"


async def test_forced_swap_cuts_with_a_clear_error(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a, b = h.model("a"), h.model("b")
        long = asyncio.create_task(h.ask(a, "slow=0.1", 200))
        await until(lambda: any(w["busy"] for w in h.pool.status()["workers"]))
        result = await h.pool.commands.swap(b, force=True)
        assert result["receipts"][0]["model"] == "a"
        with pytest.raises(Cancelled, match="makes way for b"):
            await long


async def test_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slots": 1})
        task = asyncio.create_task(h.ask(a, "slow=0.05", 10_000))
        await until(lambda: any(w["busy"] for w in h.pool.status()["workers"]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: h.worker("a")["busy"] == 0, 2)
        assert (await h.ask(a)).text.startswith("a")


async def test_client_that_leaves_a_load_ends_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slow_load": 60})
        task = asyncio.create_task(h.ask(a))
        await until(lambda: any(w["state"] == "loading" for w in h.pool.status()["workers"]))
        task.cancel()
        await until(lambda: not h.pool.status()["workers"])


async def test_slow_reader_pauses_only_its_own_request(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a, slow = h.model("a"), Reader()
        slow.slow = True
        task = asyncio.create_task(h.pool.serving.run(a, chat("flood=4000"), slow))
        await until(lambda: len(slow.chunks) >= 200)
        quick = await h.ask(a, "say=hi", 50)
        assert quick.text.startswith("hi")
        assert len(slow.chunks) <= 300, "no more than its window of 256 KB"
        slow.slow = False
        await task
        assert len(slow.chunks) == 4000


async def test_request_of_many_megabytes_arrives(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        reader = await h.ask(h.model("a"), "say=done " + "x" * 3_000_000, 2)
        assert reader.text.startswith("done")


async def test_printing_to_stdout_does_not_corrupt_the_wire(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"print_to_stdout": True})
        assert (await h.ask(a, "print_to_stdout say=fine")).text.startswith("fine")
        assert "stray output" in "".join(h.pool.tail("a"))


async def test_task_the_model_cannot_do_is_refused_before_any_load(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(TaskNotSupported, match="it can: chat, complete, embed"):
            await h.pool.serving.run(h.model("a"), Rerank(), Reader())
        assert h.pool.status()["workers"] == []


async def test_model_too_large_for_the_device_is_422(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        with pytest.raises(DoesNotFit, match="needs 210 MB of fake0, which can give 105 MB"):
            await h.ask(h.model("big", weights_bytes=200 * MB, device="fake0"))


async def test_error_of_one_request_leaves_the_worker_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a")
        await h.ask(a)
        pid = h.worker("a")["pid"]
        with pytest.raises(BadRequest, match="on command"):
            await h.ask(a, "fail")
        assert (await h.ask(a)).text and h.worker("a")["pid"] == pid


async def test_idle_model_goes_after_its_keep_alive(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.ask(h.model("a"), keep_alive_s=0.3)
        assert h.worker("a")["state"] == "ready"
        await until(lambda: not h.pool.status()["workers"], 5)
        assert "idle" in h.pool.status()["receipts"][0]["reason"]


async def test_worker_that_is_gone_leaves_no_timer(tmp_path: Path) -> None:
    """Its idle clock would keep ticking for all of keep_alive, one for every swap."""
    async with house(tmp_path, max_loaded=1, min_residency="0s") as h:
        models = [h.model("a"), h.model("b")]
        for turn in range(6):
            await h.ask(models[turn % 2])
        assert set(h.pool._timers) <= {
            f"idle {h.worker('b')['id']}",
            "room a",
            "room b",
            "standby fake",
        }


async def test_larger_context_reloads(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", n_ctx=2048)
        await h.ask(a)
        await h.ask(a, options={"n_ctx": 1024})
        assert h.worker("a")["context"] == 2048
        await h.ask(a, options={"n_ctx": 8192})
        assert h.worker("a")["context"] == 8192


async def test_close_leaves_no_process(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await asyncio.gather(h.ask(h.model("a")), h.ask(h.model("b")))
        pids = [p for w in h.pool.crew.workers.values() for p in w.pids()]
        assert len(pids) >= 2
    assert not any(machine.alive(p) for p in pids)


async def test_close_waits_for_running_answers_until_its_deadline(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a")
        short = asyncio.create_task(h.ask(a, "slow=0.05", 10))
        endless = asyncio.create_task(h.ask(a, "slow=0.05", 10_000))
        await until(lambda: any(w["busy"] == 2 for w in h.pool.status()["workers"]))
        await h.pool.close(1.5)
        assert (await short).text.split()[-1] == "tok9"
        with pytest.raises(Cancelled):
            await endless


async def test_plan_explains_without_doing(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        a, b = (h.model(n, weights_bytes=70 * MB, device="fake0") for n in ("a", "b"))
        await h.ask(a)
        plan = h.pool.commands.plan(b)
        assert plan["fits"] and [v["model"] for v in plan["victims"]] == ["a"]
        assert plan["need_bytes"]["fake0"] == 70 * MB
        assert h.worker("a")["state"] == "ready"


async def test_standby_is_ready_before_any_model_and_holds_nothing_of_the_device(
    tmp_path: Path,
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    settings: dict[str, Any] = {"fake_device": f"fake0:{100 * MB}:{device}", "standby": ["fake"]}
    async with house(tmp_path / "home", **settings) as h:
        (spare,) = await until(
            lambda: [w for w in h.pool.status()["workers"] if w["state"] == "standby"]
        )
        assert spare["model"] is None and set(spare["lease_bytes"]) == {"ram"}
        assert spare["memory_bytes"].get("fake0", 0) == 0 and not list(device.iterdir())
        model = h.model("a", weights_bytes=70 * MB, device="fake0")
        assert (await h.ask(model)).text.startswith("a ")
        assert h.worker("a")["pid"] == spare["pid"], "the load took the process that was there"


async def test_way_back_takes_the_standby_that_follows_a_swap_and_unload_ends_it(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, max_loaded=1, min_residency="0s") as h:
        a, b = h.model("a"), h.model("b")
        await h.ask(a)
        assert [w["state"] for w in h.pool.status()["workers"]] == ["ready"]
        await h.ask(b)
        spare = await until(lambda: next((w for w in _spares(h) if w["state"] == "standby"), None))
        await h.ask(a)
        assert h.worker("a")["pid"] == spare["pid"]
        await until(lambda: _spares(h))
        await h.pool.commands.unload(a.id)
        await until(lambda: not h.pool.status()["workers"])


def _spares(h: Any) -> list[dict[str, Any]]:
    return [w for w in h.pool.status()["workers"] if w["model"] is None]


async def test_single_model_mode_never_has_two_models_resident(tmp_path: Path) -> None:
    """Memory for all, `max_loaded` = 1: what the device holds is one model's, at every moment."""
    device = tmp_path / "device"
    device.mkdir()
    settings: dict[str, Any] = {"fake_device": f"fake0:{1000 * MB}:{device}", "max_loaded": 1}
    async with house(tmp_path / "home", **settings) as h:
        models = [h.model(n, weights_bytes=50 * MB, device="fake0") for n in ("a", "b", "c")]
        asked = [asyncio.create_task(h.ask(models[i % 3], max_tokens=2)) for i in range(18)]
        most = 0
        while not all(task.done() for task in asked):
            most = max(most, len(list(device.iterdir())))
            await asyncio.sleep(0.001)
        assert most == 1
        assert {(await task).text.split()[0] for task in asked} == {"a", "b", "c"}
