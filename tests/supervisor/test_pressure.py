"""Other programs take memory, workers leak: what becomes of ours. Real workers, a fake device."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import MB, house, until
from uml.protocol.errors import UmlError


@contextmanager
def game(folder: Path, size: int) -> Iterator[None]:
    """Another program (this one) holds bytes of the fake device."""
    segment = folder / f"seg.{os.getpid()}.game.now"
    with segment.open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, size)
    try:
        yield
    finally:
        segment.unlink()


@pytest.fixture
def card(tmp_path: Path) -> Path:
    folder = tmp_path / "card"
    folder.mkdir()
    return folder


def settings(card: Path, **more: Any) -> dict[str, Any]:
    return {"fake_device": f"fake0:{200 * MB}:{card}", "low_free": {"fake0": "40MiB"}} | more


async def test_idle_model_leaves_a_device_that_somebody_else_wants(
    tmp_path: Path, card: Path
) -> None:
    async with house(tmp_path / "home", **settings(card)) as h:
        a = h.model("a", weights_bytes=60 * MB, device="fake0")
        b = h.model("b", weights_bytes=10 * MB, device="fake0")
        await h.ask(a)
        await h.ask(b)
        with h.events.subscribe() as queue, game(card, 115 * MB):
            await until(lambda: h.worker("a")["state"] == "gone")
            event = await _next(queue, "pressure.relieved")
            assert event["model"] == "a" and "of fake0 free" in event["reason"]
            receipt = await until(lambda: h.pool.crew.receipts and h.pool.crew.receipts[-1])
            assert receipt.freed["fake0"] == 60 * MB and "memory is short" in receipt.reason
            assert h.worker("b")["state"] == "ready", "what was freed was enough"
            with pytest.raises(UmlError, match="can be promised"):
                await h.ask(a)
        assert (await h.ask(a)).text.startswith("a"), "and it is back when the game is over"


async def test_busy_and_pinned_models_stay_and_loads_are_refused(
    tmp_path: Path, card: Path
) -> None:
    own = settings(card, models={"pinned": {"pinned": True}})
    async with house(tmp_path / "home", **own) as h:
        await h.ask(h.model("pinned", weights_bytes=60 * MB, device="fake0"))
        new = h.model("new", weights_bytes=4 * MB, device="fake0")
        with h.events.subscribe() as queue, game(card, 120 * MB):
            assert (await _next(queue, "pressure.low"))["device"] == "fake0"
            with pytest.raises(UmlError, match="no room for new beside what is pinned"):
                await h.ask(new)
            assert h.worker("pinned")["state"] == "ready"
        busy = h.model("busy", weights_bytes=60 * MB, device="fake0")
        running = asyncio.create_task(h.ask(busy, "slow=0.1", 10))
        await until(lambda: h.worker("busy")["busy"])
        with h.events.subscribe() as queue, game(card, 60 * MB):
            await _next(queue, "pressure.low")
            assert h.worker("busy")["state"] == "ready"
            reader = await running
            assert (await _next(queue, "pressure.relieved"))["model"] == "busy"
        assert reader.text.count("tok") == 10, "its answer was complete"


async def test_brake_ends_a_busy_worker_whose_request_runs_again(
    tmp_path: Path, card: Path
) -> None:
    async with house(tmp_path / "home", **settings(card, brake={"fake0": "10MiB"})) as h:
        a = h.model("a", weights_bytes=100 * MB, device="fake0", options={"slots": 1})
        running = asyncio.create_task(h.ask(a, "hang"))
        await until(lambda: h.worker("a")["busy"])
        with h.events.subscribe() as queue, game(card, 95 * MB):
            event = await _next(queue, "pressure.braked")
            assert "before fake0 ran out" in event["reason"]
            assert (await _next(queue, "request.rerun"))["model"] == "a"
        running.cancel()
        await asyncio.wait((running,))


async def test_worker_that_leaks_is_loaded_anew_when_idle(tmp_path: Path) -> None:
    async with house(tmp_path, leak_limit="24MiB") as h:
        a = h.model("a", weights_bytes=MB)
        sound = h.model("sound", weights_bytes=MB)
        await h.ask(sound)
        with h.events.subscribe() as queue:
            before = (await h.ask(a)).text and h.worker("a")["pid"]
            for _ in range(60):
                await h.ask(a, f"eat_memory={MB}", 1)
                h.pool.look_at_footprint(h.worker("a")["id"])
                await h.ask(sound, "who", 1)
                h.pool.look_at_footprint(h.worker("sound")["id"])
            event = await _next(queue, "worker.recycled")
        assert event["model"] == "a" and "at equal load" in event["reason"]
        await until(lambda: h.worker("a")["state"] == "gone")
        assert (await h.ask(a)).text and h.worker("a")["pid"] != before
        assert h.worker("sound")["state"] == "ready"
        learned = h.pool._needs.size(a).learned
        assert learned is None or learned["ram"] < 40 * MB, "nobody counts with what leaked"


async def _next(queue: Any, name: str) -> dict[str, Any]:
    async with asyncio.timeout(15):
        while True:
            event: dict[str, Any] = await queue.get()
            if event["event"] == name:
                return event
