"""Cores: who computes shares them, who is idle holds none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.house import House, house, until
from tests.supervisor.world import MB, World, need
from uml.supervisor.cores import divide
from uml.supervisor.states import State

LIMITS = st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("cores", "limits", "shares"),
    [
        (2, [None], [2]),
        (2, [None, None], [1, 1]),
        (2, [None, None, None], [1, 1, 1]),
        (8, [None, 1], [7, 1]),
        (8, [2, None, None], [2, 3, 3]),
        (3, [None, None], [2, 1]),
        (16, [4, 2, None], [4, 2, 10]),
        (16, [1, 1], [1, 1]),
    ],
)
def test_cores_are_divided_evenly_and_none_is_left_to_who_cannot_use_it(
    cores: int, limits: list[int | None], shares: list[int]
) -> None:
    assert divide(cores, limits) == shares


@given(st.integers(1, 64), LIMITS)
def test_cores_are_never_promised_twice_and_never_lie_idle(
    cores: int, limits: list[int | None]
) -> None:
    shares = divide(cores, limits)
    assert all(share >= 1 for share in shares)
    assert sum(shares) <= max(cores, len(shares))
    assert all(limit is None or share <= limit for share, limit in zip(shares, limits, strict=True))
    hungry = any(limit is None or limit > s for s, limit in zip(shares, limits, strict=True))
    assert not hungry or sum(shares) == max(cores, len(shares))
    free = [s for s, limit in zip(shares, limits, strict=True) if limit is None or limit > s]
    assert not free or max(free) - min(free) <= 1, "in equal parts"


def test_chat_stt_and_tts_on_two_cores_never_compute_with_more_threads_than_one_each() -> None:
    world = World(total=10_000 * MB, cores=2)
    for request, model in enumerate(("chat", "stt", "tts"), 1):
        world.bring(need(model), request)
    assert world.computing() == {"chat": 1, "stt": 1, "tts": 1}
    world.finish(2)
    assert world.computing() == {"chat": 1, "tts": 1}
    world.finish(3)
    assert world.computing() == {"chat": 2}, "who computes alone has all"
    world.finish(1)
    assert world.computing() == {}
    world.ask(4, need("stt"))
    assert world.computing() == {"stt": 2}, "loaded and idle models hold none"


def test_load_computes_with_its_share_and_gives_it_back() -> None:
    world = World(total=10_000 * MB, cores=4)
    a = world.bring(need("a"), 1)
    assert world.threads[a] == 4
    world.ask(2, need("b"))
    b = world.id_of("b")
    assert world.threads[a] == 4, "a process that imports its library holds none"
    world.hello(b)
    assert world.threads == {a: 2, b: 2}
    world.do(world.scheduler.on_abandoned(2, world.clock))
    assert world.state("b") is None and world.threads[a] == 4


def test_model_on_a_gpu_and_one_with_a_limit_leave_the_rest_to_others() -> None:
    world = World(total=10_000 * MB, cores=8)
    world.bring(need("gpu", cores=1), 1)
    world.bring(need("small", cores=2), 2)
    world.bring(need("large"), 3)
    assert world.computing() == {"gpu": 1, "small": 2, "large": 5}


def test_nobody_is_told_what_he_knows() -> None:
    world = World(total=10_000 * MB, cores=2)
    world.bring(need("a"), 1)
    world.bring(need("b"), 2)
    before = len(world.said_threads)
    world.ask(3, need("a"))
    world.finish(1)
    world.finish(3)
    world.ask(4, need("a"))
    assert world.said_threads[before:] == [(world.id_of("b"), 2), (world.id_of("b"), 1)]


async def test_real_workers_are_told_their_cores(tmp_path: Path) -> None:
    def cores(h: House) -> dict[str, int]:
        return {w["model"]: w["cores"] for w in h.pool.status()["workers"]}

    async with house(tmp_path, cores=4, models={"c": {"cores": 1}}) as h:
        a, b, c = (h.model(name) for name in "abc")
        assert (await h.ask(a, "threads", 1)).text == "threads:4 "
        long = asyncio.create_task(h.ask(b, "slow=0.02", 1000))
        await until(lambda: cores(h).get("b") == 4)
        assert (await h.ask(a, "threads", 1)).text == "threads:2 "
        assert (await h.ask(c, "threads", 1)).text == "threads:1 "
        assert cores(h) == {"a": 0, "b": 4, "c": 0}
        long.cancel()
        await until(lambda: h.worker("b")["busy"] == 0 or h.worker("b")["state"] != State.READY)
