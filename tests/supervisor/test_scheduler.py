"""The scheduler's promises, event by event."""

from __future__ import annotations

import pytest

from tests.supervisor.world import MB, PROCESS, World, need
from uml.supervisor.states import State


def test_request_for_an_unloaded_model_spawns_loads_and_grants() -> None:
    world = World()
    world.ask(1, need("a"))
    assert world.spawned == ["w1"] and world.state("a") is State.STARTING
    world.hello("w1")
    assert world.loaded == ["w1"] and world.state("a") is State.LOADING
    world.ready("w1")
    assert world.granted == {1: "w1"} and world.state("a") is State.READY


def test_requests_join_a_load_that_is_under_way() -> None:
    world = World()
    world.ask(1, need("a"))
    world.ask(2, need("a"))
    assert world.spawned == ["w1"]
    world.hello("w1")
    world.ready("w1")
    assert world.granted == {1: "w1", 2: "w1"}


def test_more_requests_than_slots_wait_in_order() -> None:
    world = World()
    world.bring(need("a"), 1, slots=1)
    world.ask(2, need("a"))
    world.ask(3, need("a"))
    assert 2 not in world.granted and world.scheduler.line("a") == [2, 3]
    world.finish(1)
    assert 2 in world.granted and 3 not in world.granted


def test_two_models_that_fit_stay_loaded_together() -> None:
    world = World()
    world.bring(need("a"), 1)
    world.bring(need("b"), 2)
    assert world.killed == []


def test_swap_starts_the_new_process_while_the_idle_one_is_killed() -> None:
    world = World()
    old = world.bring(need("a", 700 * MB), 1)
    world.finish(1)
    world.ask(2, need("b", 700 * MB))
    assert [w for w, _ in world.killed] == [old]
    assert world.spawned[-1] != old, "B imports while A goes"
    new = world.spawned[-1]
    world.hello(new)
    assert world.state("b") is State.STANDBY and world.loaded == [old], "A's bytes are not back"
    world.gone(old)
    assert world.loaded == [old, new]
    world.ready(new)
    assert world.granted[2] == new


def test_new_model_loads_at_once_when_memory_came_back_before_its_hello() -> None:
    world = World()
    old = world.bring(need("a", 700 * MB), 1)
    world.finish(1)
    world.ask(2, need("b", 700 * MB))
    world.gone(old)
    assert world.state("b") is State.STARTING
    world.hello(world.spawned[-1])
    assert world.state("b") is State.LOADING


def test_busy_model_serves_on_until_patience_ends_then_drains() -> None:
    world = World(max_wait_s=8.0)
    old = world.bring(need("a", 700 * MB), 1)
    world.ask(2, need("b", 700 * MB))
    assert world.state("a") is State.READY
    world.ask(3, need("a", 700 * MB))
    assert world.granted[3] == old, "newer work for the loaded model is served meanwhile"
    world.wait(8.1)
    assert world.state("a") is State.DRAINING
    world.ask(4, need("a", 700 * MB))
    assert 4 not in world.granted, "a draining model takes nothing new"
    world.finish(1)
    assert world.state("a") is State.DRAINING and world.killed == []
    world.finish(3)
    assert [w for w, _ in world.killed] == [old]


def test_busy_model_that_becomes_idle_is_swapped_before_patience_ends() -> None:
    world = World()
    old = world.bring(need("a", 700 * MB), 1)
    world.ask(2, need("b", 700 * MB))
    world.finish(1)
    assert [w for w, _ in world.killed] == [old]


def test_draining_model_is_reprieved_when_nobody_wants_its_room_any_more() -> None:
    world = World(max_wait_s=0.0)
    world.bring(need("a", 700 * MB), 1)
    world.ask(2, need("b", 700 * MB))
    assert world.state("a") is State.DRAINING
    world.do(world.scheduler.on_abandoned(2, world.clock))
    assert world.state("a") is State.READY and "worker.reprieved" in world.told
    world.ask(3, need("a", 700 * MB))
    assert 3 in world.granted


def test_victim_reacquired_while_draining_comes_back_after_the_swap() -> None:
    world = World(max_wait_s=0.0)
    old = world.bring(need("a", 700 * MB), 1)
    world.ask(2, need("b", 700 * MB))
    world.ask(3, need("a", 700 * MB))
    world.finish(1)
    world.gone(old)
    b = world.id_of("b")
    world.hello(b)
    world.ready(b)
    assert world.granted[2] == b, "B is served before it has to go for A again"
    world.finish(2)
    assert world.killed[-1][0] == b
    world.gone(b)
    a = world.id_of("a")
    world.hello(a)
    world.ready(a)
    assert world.granted[3] == a


def test_third_model_does_not_take_what_the_second_waits_for() -> None:
    world = World(max_wait_s=0.0)
    old = world.bring(need("a", 600 * MB), 1)
    world.ask(2, need("b", 900 * MB))
    assert world.state("a") is State.DRAINING
    world.ask(3, need("c", 300 * MB))
    assert world.state("c") is not State.LOADING
    leased = {w: lease.bytes["ram"] for w, lease in world.scheduler.budget.leases.items()}
    c = world.scheduler.worker_of("c")
    assert c is None or leased[c.id] <= PROCESS
    world.finish(1)
    world.gone(old)
    b = world.id_of("b")
    world.hello(b)
    assert world.state("b") is State.LOADING


def test_load_cancelled_by_its_only_waiter_is_killed() -> None:
    world = World()
    world.ask(1, need("a"))
    world.hello("w1")
    world.do(world.scheduler.on_abandoned(1, world.clock))
    assert [w for w, _ in world.killed] == ["w1"]


def test_load_goes_on_while_one_of_two_waiters_stays() -> None:
    world = World()
    world.ask(1, need("a"))
    world.ask(2, need("a"))
    world.do(world.scheduler.on_abandoned(1, world.clock))
    assert world.killed == []


def test_two_swaps_crossing_serve_both() -> None:
    world = World()
    first = world.bring(need("a", 700 * MB), 1)
    world.finish(1)
    world.ask(2, need("b", 700 * MB))
    world.ask(3, need("c", 700 * MB))
    world.gone(first)
    b = world.id_of("b")
    world.hello(b)
    world.ready(b)
    world.finish(2)
    assert world.killed[-1][0] == b
    world.gone(b)
    c = world.id_of("c")
    world.hello(c)
    world.ready(c)
    assert world.granted[3] == c and not world.refused


def test_idle_model_is_unloaded_after_its_keep_alive_and_not_before() -> None:
    world = World()
    world.bring(need("a", keep_alive_s=60.0), 1)
    world.wait(100)
    assert world.killed == [], "busy is not idle"
    world.finish(1)
    world.wait(59)
    assert world.killed == []
    world.wait(2)
    assert [w for w, _ in world.killed] == ["w1"]


def test_new_request_restarts_the_idle_clock() -> None:
    world = World()
    world.bring(need("a", keep_alive_s=60.0), 1)
    world.finish(1)
    world.wait(50)
    world.ask(2, need("a", keep_alive_s=60.0))
    world.finish(2)
    world.wait(50)
    assert world.killed == []


@pytest.mark.parametrize(("keep", "ends"), [(0.0, True), (-1.0, False)])
def test_keep_alive_zero_ends_with_the_reply_and_negative_never(keep: float, ends: bool) -> None:
    world = World()
    world.bring(need("a", keep_alive_s=keep), 1)
    world.finish(1)
    world.wait(100_000)
    assert bool(world.killed) is ends


def test_pinned_model_is_never_evicted() -> None:
    world = World()
    world.bring(need("a", 700 * MB, pinned=True), 1)
    world.finish(1)
    world.ask(2, need("b", 700 * MB))
    assert world.killed == []
    assert world.refused[2].status == 409 and "a" in world.refused[2].message


def test_single_model_mode_never_holds_two() -> None:
    world = World(total=100_000 * MB, max_loaded=1)
    old = world.bring(need("a"), 1)
    world.finish(1)
    world.ask(2, need("b"))
    new = world.spawned[-1]
    world.hello(new)
    assert world.state("b") is State.STANDBY and [w for w, _ in world.killed] == [old]
    world.gone(old)
    assert world.state("b") is State.LOADING


def test_single_model_mode_queues_a_third_model() -> None:
    world = World(total=100_000 * MB, max_loaded=1)
    a = world.bring(need("a"), 1)
    world.finish(1)
    world.ask(2, need("b"))
    world.ask(3, need("c"))
    world.gone(a)
    b = world.id_of("b")
    world.hello(b)
    world.ready(b)
    assert world.granted[2] == b and 3 not in world.refused
    world.finish(2)
    world.gone(b)
    world.hello(world.id_of("c"))
    assert world.state("c") is State.LOADING


def test_unload_waits_for_running_answers_and_force_does_not() -> None:
    world = World()
    world.bring(need("a"), 1)
    world.do(world.scheduler.on_unload("a", world.clock))
    assert world.state("a") is State.DRAINING and world.killed == []
    world.do(world.scheduler.on_unload("a", world.clock, force=True))
    assert [w for w, _ in world.killed] == ["w1"]


def test_unload_during_load_refuses_who_waits_for_it() -> None:
    world = World()
    world.ask(1, need("a"))
    world.do(world.scheduler.on_unload("a", world.clock))
    assert world.refused[1].code == "cancelled"
    assert [w for w, _ in world.killed] == ["w1"]


def test_larger_context_reloads_and_smaller_one_is_served() -> None:
    world = World()
    world.bring(need("a", n_ctx=2048), 1)
    world.ask(2, need("a", n_ctx=1024))
    assert world.granted[2] == "w1"
    world.ask(3, need("a", n_ctx=4096))
    assert world.state("a") is State.DRAINING
    world.finish(1)
    world.finish(2)
    world.gone("w1")
    world.hello("w2")
    world.ready("w2")
    assert world.granted[3] == "w2"
    assert world.scheduler.workers["w2"].need.n_ctx == 4096  # type: ignore[union-attr]


def test_swap_makes_all_others_leave_even_where_both_would_fit() -> None:
    world = World()
    world.bring(need("a"), 1)
    world.bring(need("p", 100 * MB, pinned=True), 2)
    world.finish(1)
    world.finish(2)
    world.do(world.scheduler.on_make_way("b", world.clock))
    assert [w for w, _ in world.killed] == ["w1"]


def test_queue_limit_refuses_with_429() -> None:
    world = World(queue=2)
    world.ask(1, need("a"))
    world.ask(2, need("a"))
    world.ask(3, need("a"))
    assert world.refused[3].status == 429 and world.refused[3].retry_after_s


def test_shutdown_refuses_the_queue_and_lets_answers_finish() -> None:
    world = World()
    world.bring(need("a"), 1, slots=1)
    world.ask(2, need("a"))
    world.do(world.scheduler.on_shutdown(world.clock))
    assert world.refused[2].code == "shutting_down" and world.killed == []
    world.ask(3, need("a"))
    assert world.refused[3].code == "shutting_down"
    world.finish(1)
    assert [w for w, _ in world.killed] == ["w1"]


def test_larger_context_that_cannot_be_had_keeps_nobody_from_the_smaller_one() -> None:
    world = World()
    world.ask(1, need("a", 900 * MB, n_ctx=1024))
    world.foreign = 200 * MB
    world.ask(2, need("a", 950 * MB, n_ctx=4096))
    world.hello("w1")
    world.ready("w1")
    assert world.granted == {1: "w1"} and world.refused[2].status == 503


def test_plan_says_who_would_go_and_changes_nothing() -> None:
    world = World()
    world.bring(need("a", 700 * MB), 1)
    world.measure()
    fits, victims, _ = world.scheduler.plan(need("b", 700 * MB))
    assert fits and [(v["model"], v["busy"]) for v in victims] == [("a", 1)]
    assert world.state("a") is State.READY and world.killed == []
    fits, victims, why = world.scheduler.plan(need("huge", 5000 * MB))
    assert not fits and not victims and "does not fit" in why
