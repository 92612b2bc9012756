"""Workers that die or hang, and bytes that come back late or never."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import MB, Reader, chat, house, until
from uml.protocol import messages
from uml.protocol.errors import (
    LoadFailed,
    WorkerDied,
)
from uml.supervisor import tree
from uml.supervisor.api.answers import Collector


async def test_swap_waits_for_bytes_that_come_back_late(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        a = h.model("a", weights_bytes=70 * MB, device="fake0", options={"late_release": 0.4})
        b = h.model("b", weights_bytes=70 * MB, device="fake0")
        await h.ask(a)
        await h.ask(b)
        (receipt,) = h.pool.status()["receipts"]
        assert receipt["verified"] == "yes" and receipt["ms"] >= 400


@pytest.mark.parametrize("policy", [{"late_release": 0.4}, {"falling_release": 0.4}])
async def test_bytes_of_a_worker_that_died_by_itself_are_waited_for(
    tmp_path: Path, policy: dict[str, float]
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        a = h.model("a", weights_bytes=70 * MB, device="fake0", options=policy)
        b = h.model("b", weights_bytes=70 * MB, device="fake0")
        await h.ask(a)
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        await until(lambda: h.worker("a")["state"] != "ready")
        assert (await h.ask(b)).text.startswith("b"), "the room is on its way, so b waits for it"
        (receipt,) = h.pool.status()["receipts"]
        assert receipt["verified"] == "yes" and not receipt["after"]
        assert receipt["freed"]["fake0"] >= receipt["before"]["fake0"] > 50 * MB


@pytest.mark.parametrize("policy", ["late:0.08", "falling:0.3"])
async def test_start_after_a_kill_waits_for_bytes_that_are_on_their_way(
    tmp_path: Path, policy: str
) -> None:
    device, ledger = tmp_path / "device", tmp_path / "home" / "ledger"
    device.mkdir()
    ledger.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    with (device / f"seg.{dead.pid}.token.{policy}").open("wb") as f:
        f.truncate(70 * MB)
    (ledger / "token.json").write_text(
        json.dumps({"supervisor": [dead.pid, 1.0], "members": [[dead.pid, 1.0]]})
    )
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        b = h.model("b", weights_bytes=70 * MB, device="fake0")
        assert (await h.ask(b)).text.startswith("b"), "there is room as soon as it serves"


async def test_bytes_that_never_come_back_are_named_and_not_promised(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        a = h.model("a", weights_bytes=70 * MB, device="fake0", options={"never_release": True})
        b = h.model("b", weights_bytes=70 * MB, device="fake0")
        await h.ask(a)
        with pytest.raises(Exception, match="can be promised"):
            await h.ask(b)
        (residue,) = h.pool.status()["residue"]
        assert residue["device"] == "fake0" and residue["bytes"] == 70 * MB and residue["pids"]
        for segment in device.iterdir():  # the driver comes to its senses
            segment.unlink()
        await until(lambda: not h.pool.status()["residue"])
        assert (await h.ask(b)).text.startswith("b")


async def test_worker_killed_before_any_content_is_run_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"token_delay": 0.0})
        await h.ask(a)
        waiting = asyncio.create_task(h.ask(a, "hang"))
        await until(lambda: h.worker("a")["busy"])
        first = h.worker("a")["pid"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: h.worker("a")["busy"] and h.worker("a")["pid"] != first)
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await waiting  # two deaths: it is not given a third worker
        assert (await h.ask(a)).text.startswith("a")


@pytest.mark.parametrize("state", ["starting", "loading"])
async def test_worker_killed_before_it_is_ready_costs_no_request(
    tmp_path: Path, state: str
) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slow_load": 0.5})
        waiting = asyncio.create_task(h.ask(a, "who"))
        (worker,) = await until(
            lambda: [w for w in h.pool.status()["workers"] if w["state"] == state]
        )
        os.kill(worker["pid"], signal.SIGKILL)
        assert (await waiting).text.startswith("a ")
        assert len(h.pool.status()["receipts"]) == 1


async def test_worker_that_dies_between_the_grant_and_the_request_costs_no_request(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slow_load": 0.3})
        waiting = asyncio.create_task(h.ask(a, "who"))
        loading = asyncio.create_task(h.pool.commands.load(a))
        state = await until(lambda: h.pool.scheduler.worker_of("a"))
        await until(lambda: state.state == "loading")
        worker = h.pool.crew.workers[state.id]
        # As when the exit and the last word come out of one look at the pipes.
        h.pool.hearing.on_message(worker, messages.Ready(slots=4))
        assert state.busy, "it was granted"
        h.pool.hearing.on_exit(worker, "was killed by SIGKILL")
        assert (await waiting).text.startswith("a ")
        assert (await loading)["state"] == "ready"


async def test_answer_that_is_not_streamed_is_done_again_when_its_worker_dies(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        a, collector = h.model("a"), Collector()
        waiting = asyncio.create_task(h.pool.serving.run(a, chat("who slow=0.05", 20), collector))
        await until(lambda: len(collector.choice(0).texts) >= 3)
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        await waiting
        assert collector.choice(0).text.split() == ["a", *(f"tok{i}" for i in range(1, 20))]


async def test_worker_killed_in_mid_stream_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a, reader = h.model("a"), Reader()
        with pytest.raises(WorkerDied):
            await h.pool.serving.run(a, chat("die_after_n=3", 10), reader)
        assert reader.text == "tok0 tok1 tok2 "
        assert (await h.ask(a)).text.startswith("a")


async def test_worker_that_holds_the_interpreter_is_killed_when_its_beat_is_overdue(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, beat_overdue="2s") as h:
        a = h.model("a")
        await h.ask(a)
        with pytest.raises(WorkerDied, match="no sign of life"):
            await h.ask(a, "hold_gil")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fail_load": "no such tensor"}, "no such tensor"),
        ({"crash_on_load": True}, "about to crash"),
        ({"overshoot": 200 * MB}, "were granted"),
    ],
)
async def test_failed_load_says_why(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(LoadFailed, match=says):
            await h.ask(h.model("a", options=options))
        await until(lambda: not h.pool.status()["workers"])


async def test_stalled_load_is_ended(tmp_path: Path) -> None:
    async with house(tmp_path, load_stall="1s") as h:
        with pytest.raises(LoadFailed, match="got nowhere for 1 s"):
            await h.ask(h.model("a", options={"stall_load": 60}))


async def test_slow_load_that_moves_is_let_be(tmp_path: Path) -> None:
    async with house(tmp_path, load_stall="1s") as h:
        assert (await h.ask(h.model("a", options={"slow_load": 2.5}))).text.startswith("a")


@pytest.mark.parametrize("how", ["group", "setsid"])
async def test_unload_leaves_no_process_whatever_the_worker_started(
    tmp_path: Path, how: str
) -> None:
    async with house(tmp_path) as h:
        await h.ask(h.model("a", options={"spawn_child": how}), "spawn_child")
        (worker,) = h.pool.crew.workers.values()
        members = worker.pids()
        assert len(members) >= 3
        (receipt,) = await h.pool.commands.unload("a")
        assert receipt["verified"] == "yes" and set(members) <= set(receipt["pids"])
        assert tree.living(members) == [] and not h.pool.status()["workers"]
        assert not list((tmp_path / "ledger").iterdir())
