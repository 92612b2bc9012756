"""Retry-After: from measured loads, measured answers and who waits."""

from __future__ import annotations

import pytest

from tests.supervisor.world import MB, World, need
from uml.supervisor.states import Need


def big(model: str, **extra: object) -> Need:
    return need(model, 700 * MB, **extra)


def refused_after(world: World, request: int, wanted: Need) -> float:
    world.ask(request, wanted)
    error = world.refused[request]
    assert error.status == 429 and error.retry_after_s is not None
    return error.retry_after_s


def load(world: World, wanted: Need, request: int, load_s: float, answer_s: float) -> None:
    """`wanted`'s model comes up in so many seconds and answers once, in so many."""
    world.ask(request, wanted)
    worker = world.id_of(wanted.model)
    world.hello(worker)
    world.wait(load_s)
    world.ready(worker)
    world.wait(answer_s)
    world.finish(request)


def test_full_queue_of_a_loaded_model_says_how_long_its_line_takes() -> None:
    world = World(queue=8)
    load(world, big("a"), 1, load_s=3.0, answer_s=4.0)
    for request in range(2, 12):  # two slots are taken, eight wait
        world.ask(request, big("a"))
    assert refused_after(world, 12, big("a")) == pytest.approx(8 / 2 * 4.0)


def test_full_queue_of_models_that_take_turns_counts_their_loads_as_measured() -> None:
    world = World(queue=2, min_residency_s=2.0, max_wait_s=8.0)
    load(world, big("b"), 1, load_s=30.0, answer_s=0.1)
    world.bring_instead(big("a"), 2)
    world.ask(3, big("b"))
    world.ask(4, big("c", load_s=7.0))  # measured before our time
    assert refused_after(world, 5, big("d", load_s=1.5)) == pytest.approx(1.5 + 32.0 + 9.0)


def test_retry_after_stays_within_bounds() -> None:
    world = World(queue=1)
    world.bring(big("a"), 1, slots=1)
    world.ask(2, big("a"))
    assert refused_after(world, 3, big("a")) == 1.0, "nothing is known yet"
    world = World(queue=1)
    load(world, big("a"), 1, load_s=1.0, answer_s=5000.0)
    for request in (2, 3, 4):
        world.ask(request, big("a"))
    assert refused_after(world, 5, big("a")) == 300.0


def test_memory_held_by_others_is_looked_at_again_no_sooner_than_in_ten_seconds() -> None:
    world = World()
    world.foreign = 900 * MB
    world.ask(1, need("a", load_s=25.0))
    assert world.refused[1].status == 503 and world.refused[1].retry_after_s == 25.0
    world.ask(2, need("b", load_s=0.2))
    assert world.refused[2].retry_after_s == 10.0
