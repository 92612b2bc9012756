"""Who goes first, who stays how long, and that nobody waits for ever."""

from __future__ import annotations

import pytest

from tests.supervisor.world import MB, World, need
from uml.supervisor.states import State


def big(model: str, **extra: object) -> object:
    return need(model, 700 * MB, **extra)


def swap_in(world: World, model: str, slots: int = 2) -> str:
    """The victim of `model` is gone: let it come up; its worker."""
    for worker, _ in world.killed:
        if worker in world.scheduler.workers:
            world.gone(worker)
    worker = world.id_of(model)
    world.hello(worker)
    world.ready(worker, slots)
    return worker


def test_idle_model_lingers_for_its_clients_next_request() -> None:
    world = World(linger_s=0.05)
    a = world.bring(big("a"), 1)
    world.wait(10)
    world.ask(2, big("b"))
    world.finish(1)
    assert world.killed == [] and world.state("b") is State.STARTING, "B imports meanwhile"
    world.wait(0.02)
    world.ask(3, big("a"))
    assert world.granted[3] == a, "its client came back in time"
    world.finish(3)
    world.wait(0.06)
    assert [w for w, _ in world.killed] == [a]


def test_model_whose_clients_never_come_back_at_once_is_not_waited_for() -> None:
    """Clients that want A and B by turns: nobody asks A again as long as B has not answered."""
    world = World(linger_s=0.05)
    world.bring(big("a"), 1)
    lingered = []
    for request in range(2, 20):
        world.wait(5)
        other = "ab"[request % 2 == 0]
        world.ask(request, big(other))
        before = world.clock
        world.finish(request - 1)
        world.wait(0.0)
        lingered.append(not any(w.state is State.KILLING for w in world.scheduler.workers.values()))
        world.wait(0.1)
        swap_in(world, other)
        assert request in world.granted and world.clock - before < 0.2
    assert lingered[0] and not any(lingered[-6:])


def test_model_whose_clients_come_back_again_is_waited_for_again() -> None:
    world = World(linger_s=0.05, max_wait_s=1000.0, max_loaded=1)
    forecast = world.scheduler._decide.forecast
    for at in range(20):
        forecast.rests("a", float(at))
        forecast.asked("a", at + 0.5)
    assert forecast.linger_s("a") == 0.0
    for at in range(20, 23):
        forecast.rests("a", float(at))
        forecast.asked("a", at + 0.01)
    assert forecast.linger_s("a") == 0.05


def test_model_long_idle_leaves_at_once() -> None:
    world = World(linger_s=0.05)
    world.bring(big("a"), 1)
    world.finish(1)
    world.wait(1)
    world.ask(2, big("b"))
    assert world.killed


def test_newer_work_does_not_keep_a_waiter_beyond_max_wait() -> None:
    """A client asks for A without pause; B gets its turn after max_wait and one answer."""
    world = World(max_wait_s=8.0, linger_s=0.05)
    a, request = world.bring(big("a"), 1), 2
    world.wait(5)
    world.ask(1000, big("b"))
    asked = world.clock
    while not world.killed:
        world.wait(0.3)
        world.finish(request - 1)
        world.wait(0.01)
        world.ask(request, big("a"))
        request += 1
    assert 8.0 <= world.clock - asked <= 8.0 + 2 * 0.31
    b = swap_in(world, "b")
    assert world.granted[1000] == b and a != b


def test_requests_that_came_first_are_served_before_the_swap_even_beyond_max_wait() -> None:
    world = World(max_wait_s=1.0)
    world.bring(big("a"), 1, slots=1)
    for request in (2, 3):
        world.wait(0.1)
        world.ask(request, big("a"))
    world.wait(0.1)
    world.ask(4, big("b"))
    world.ask(5, big("a"))
    for request in (1, 2):
        world.wait(2)
        world.finish(request)
        assert request + 1 in world.granted and world.state("a") is not State.KILLING
    assert world.state("a") is State.DRAINING, "only newer work is left: it is not begun any more"
    world.finish(3)
    assert world.killed and 5 not in world.granted


def test_swap_serves_all_who_wait_before_it_swaps_back() -> None:
    world = World(max_wait_s=8.0)
    world.bring(big("a"), 1)
    for request in range(10, 16):
        world.ask(request, big("b"))
    world.finish(1)
    world.ask(20, big("a"))
    b = swap_in(world, "b", slots=2)
    for request in range(10, 16):
        assert world.granted[request] == b and len(world.killed) == 1
        world.finish(request)
    assert [w for w, _ in world.killed][1:] == [b]


def test_busy_model_stays_for_its_least_time_although_others_waited_long() -> None:
    world = World(max_wait_s=3.0, min_residency_s=2.0)
    world.bring(big("a"), 1)
    world.ask(2, big("b"))
    world.wait(3.1)
    world.ask(3, big("a"))
    world.finish(1)
    world.wait(10)  # b takes long to come
    swap_in(world, "b")
    assert 2 in world.granted
    world.wait(1.9)
    world.ask(4, big("b"))
    assert 4 in world.granted, "A has waited beyond max_wait, but B has just come"
    world.wait(1.2)
    world.ask(5, big("b"))
    assert 5 not in world.granted and world.state("b") is State.DRAINING


def test_slow_load_buys_a_longer_stay_but_not_beyond_max_wait() -> None:
    world = World(max_wait_s=8.0, min_residency_s=2.0)
    world.bring(big("a"), 1)
    world.finish(1)
    world.ask(2, big("b"))
    world.gone("w1")
    b = world.id_of("b")
    world.hello(b)
    world.wait(1)
    world.ask(3, big("a"))
    world.wait(29)
    world.ready(b)  # 30 s
    world.wait(7.9)
    assert world.state("b") is State.READY
    world.wait(0.2)
    assert world.state("b") is State.DRAINING


def test_higher_priority_does_not_wait_for_newer_work_of_a_lower_one() -> None:
    world = World(max_wait_s=8.0, min_residency_s=2.0)
    world.bring(big("a"), 1)
    world.wait(2.1)
    world.ask(2, big("b", priority=1))
    assert world.state("a") is State.DRAINING


def test_priority_goes_first_among_those_who_wait_but_time_outweighs_it() -> None:
    world = World(max_wait_s=100.0, priority_s=10.0)
    world.bring(big("a"), 1)
    world.ask(2, big("low"))
    world.wait(9)
    world.ask(3, big("high", priority=1))
    world.finish(1)
    swap_in(world, "high")
    world.ask(4, big("high", priority=1))
    world.wait(2)
    world.ask(5, big("other", priority=1))
    world.finish(3)
    world.finish(4)
    swap_in(world, "low")
    assert 2 in world.granted and 5 not in world.granted


@pytest.mark.parametrize("models", [3, 7])
def test_every_model_gets_its_turn_under_endless_load_for_all(models: int) -> None:
    """Room for one; each model has a client that asks again at once."""
    world = World(max_wait_s=2.0, min_residency_s=0.5, max_loaded=1)
    names = [f"m{i}" for i in range(models)]
    requests, waits = {}, {}
    for i, name in enumerate(names):
        world.ask(i, big(name))
        requests[i], waits[i] = name, world.clock
    last, longest = models, 0.0
    for _ in range(3000):
        world.wait(0.05)
        for worker in list(world.scheduler.workers.values()):
            if worker.state is State.KILLING:
                world.gone(worker.id)
            elif worker.state is State.STARTING:
                world.hello(worker.id)
            elif worker.state is State.LOADING:
                world.ready(worker.id)
        for request in [r for r in requests if r in world.granted]:
            longest = max(longest, world.clock - waits.pop(request))
            name = requests.pop(request)
            world.finish(request)
            world.ask(last, big(name))
            requests[last], waits[last] = name, world.clock
            last += 1
    longest = max(longest, *(world.clock - since for since in waits.values()))
    assert longest <= 2.0 + models * (0.5 + 4 * 0.05), "a turn each: load, least stay, drain"
