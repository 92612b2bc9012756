"""Requests whose worker dies: the innocent are answered, the guilty named."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import House, Reader, chat, house, until
from uml.protocol.errors import Quarantined, ShuttingDown
from uml.supervisor.api.answers import Collector


async def answer(h: House, model: Any, text: str, max_tokens: int = 10) -> list[str]:
    """The words of an answer that is not streamed."""
    collector = Collector()
    await h.pool.serving.run(model, chat(text, max_tokens), collector)
    return collector.choice(0).text.split()


async def companions(h: House, model: Any, count: int) -> list[asyncio.Task[list[str]]]:
    """Requests that run side by side in one worker."""
    tasks = [
        asyncio.create_task(answer(h, model, f"say=n{i} slow=0.02 x", 20)) for i in range(count)
    ]
    await until(lambda: h.pool.status()["workers"] and h.worker(model.id)["busy"] == count)
    return tasks


async def test_innocent_companions_of_a_poison_request_all_get_their_answers(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slots": 8})
        innocent = await companions(h, a, 4)
        with pytest.raises(Quarantined, match="alone, so it is not given a third") as caught:
            await answer(h, a, "die_after_n=2 slow=0.02")
        assert caught.value.status == 502 and not caught.value.retryable
        for number, task in enumerate(innocent):
            assert await task == [f"n{number}", *(f"tok{i}" for i in range(1, 20))]
        assert h.pool.status()["failed"] == []


async def test_several_poison_requests_do_not_make_the_model_back_off(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slots": 8})
        innocent = await companions(h, a, 2)
        poison = [answer(h, a, "die_after_n=2 slow=0.02") for _ in range(3)]
        ends = await asyncio.gather(*poison, return_exceptions=True)
        assert [type(e) for e in ends] == [Quarantined] * 3
        assert [len(await task) for task in innocent] == [20, 20]
        assert await answer(h, a, "who", 1) == ["a"]


async def test_suspect_runs_with_no_other_beside_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"slots": 8})
        suspects = await companions(h, a, 3)
        first = h.worker("a")
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda: all(w["id"] != first["id"] for w in h.pool.status()["workers"]))
        later = [asyncio.create_task(answer(h, a, "who", 1)) for _ in range(4)]
        alone, order = set(), []
        for task in [*suspects, *later]:
            task.add_done_callback(order.append)
        while not all(t.done() for t in [*suspects, *later]):
            for worker in h.pool.scheduler.workers.values():
                if worker.alone is not None:
                    assert worker.busy == {worker.alone}
                    alone.add(worker.alone)
            await asyncio.sleep(0.002)
        assert len(alone) == 3
        assert order[:3] == suspects, "who came first keeps his place"


async def test_request_whose_worker_dies_while_it_makes_way_is_answered_and_so_is_the_other(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, max_loaded=1, max_wait="0s", min_residency="0s") as h:
        a, b = h.model("a"), h.model("b")
        (first,) = await companions(h, a, 1)
        other = asyncio.create_task(answer(h, b, "who", 2))
        await until(lambda: h.worker("a")["state"] == "draining")
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        assert (await other)[0] == "b"
        assert len(await first) == 20
        # Who of the two comes next depends on which is quicker, the kill or the request.
        assert [r["model"] for r in h.pool.status()["receipts"]] in (["a", "a"], ["a", "b"])


async def test_full_queue_does_not_turn_away_what_was_running(tmp_path: Path) -> None:
    async with house(tmp_path, queue_limit=1) as h:
        a = h.model("a", options={"slots": 3})
        await h.ask(a)
        running = await companions(h, a, 3)
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        assert [len(await task) for task in running] == [20, 20, 20]


async def test_request_that_hung_is_run_again_and_then_given_up(tmp_path: Path) -> None:
    async with house(tmp_path, load_stall="500ms") as h:
        a = h.model("a")
        with pytest.raises(Quarantined, match="produced nothing"):
            await h.ask(a, "hang")
        await until(lambda: len(h.pool.status()["receipts"]) == 2)
        reasons = [r["reason"] for r in h.pool.status()["receipts"]]
        assert all("produced nothing" in r for r in reasons)


async def test_worker_that_dies_during_the_shutdown_ends_its_requests_with_a_reason(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        a = h.model("a")
        task = asyncio.create_task(h.pool.serving.run(a, chat("hang"), Reader()))
        await until(lambda: h.pool.status()["workers"] and h.worker("a")["busy"])
        closing = asyncio.create_task(h.pool.close(30))
        await until(lambda: h.worker("a")["state"] == "draining")
        os.kill(h.worker("a")["pid"], signal.SIGKILL)
        with pytest.raises(ShuttingDown):
            await task
        await closing
