"""Loads that fail, workers that die, requests that run again."""

from __future__ import annotations

import pytest

from tests.supervisor.world import MB, PROCESS, World, need
from uml.protocol.errors import LoadFailed, WorkerDied
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.states import State


def test_free_memory_that_falls_during_release_makes_the_claim_look_again() -> None:
    world = World()
    old = world.bring(need("a", 500 * MB), 1)
    small = world.bring(need("s", 300 * MB), 9)
    world.finish(1)
    world.ask(2, need("b", 600 * MB))
    assert [w for w, _ in world.killed] == [old]
    world.foreign = 150 * MB  # somebody else took some meanwhile
    world.gone(old)
    world.hello(world.id_of("b"))
    assert world.state("b") is State.STANDBY
    world.finish(9)
    assert world.killed[-1][0] == small, "the next victim goes as soon as it is idle"
    world.gone(small)
    assert world.state("b") is State.LOADING


def test_residue_is_not_promised_again_until_it_is_seen_back() -> None:
    world = World()
    old = world.bring(need("a", 700 * MB), 1)
    world.finish(1)
    world.ask(2, need("b", 700 * MB))
    new = world.id_of("b")
    world.hello(new)
    world.gone(old, residue=600 * MB)
    assert world.state("b") is not State.LOADING
    assert world.scheduler.budget.leases[old].residue
    world.residue_goes(old)
    assert old not in world.scheduler.budget.leases


def test_load_failure_tells_all_waiters_the_cause() -> None:
    world = World()
    world.ask(1, need("a"))
    world.ask(2, need("a"))
    world.hello("w1")
    world.do(world.scheduler.on_failed("w1", LoadFailed("out of luck"), world.clock))
    assert [e.message for e in world.refused.values()] == ["out of luck"] * 2
    world.gone("w1")
    assert world.spawned == ["w1"], "nobody waits, so nothing is tried again"


def test_load_that_died_is_tried_once_more_for_each_who_waits() -> None:
    world = World()
    died = LoadFailed("was killed by SIGKILL")
    world.ask(1, need("a"))
    world.hello("w1")
    world.do(world.scheduler.on_failed("w1", died, world.clock, died=True))
    world.gone("w1")
    assert world.spawned == ["w1", "w2"] and not world.refused
    world.ask(2, need("a"))
    world.do(world.scheduler.on_failed("w2", died, world.clock, died=True))
    world.gone("w2")
    assert set(world.refused) == {1}, "the other one has seen only one death"
    world.hello("w3")
    world.ready("w3")
    assert world.granted == {2: "w3"}


def test_model_that_fails_again_and_again_backs_off_and_is_tried_once_later() -> None:
    world = World()
    for request in range(3):
        world.ask(request, need("a"))
        worker = world.spawned[-1]
        world.do(world.scheduler.on_failed(worker, LoadFailed("broken"), world.clock))
        world.gone(worker)
    world.ask(10, need("a"))
    assert world.refused[10].status == 503 and "broken" in world.refused[10].message
    assert world.refused[10].retry_after_s == pytest.approx(10)
    world.wait(10.5)
    world.ask(11, need("a"))
    assert 11 not in world.refused
    worker = world.spawned[-1]
    world.do(world.scheduler.on_failed(worker, LoadFailed("broken"), world.clock))
    world.gone(worker)
    world.ask(12, need("a"))
    assert world.refused[12].retry_after_s == pytest.approx(20)
    world.ask(13, need("a"), urgent=True)
    assert 13 not in world.refused, "a person's own load is tried at once"


@pytest.mark.parametrize("drained", [False, True])
def test_answer_that_ends_closes_the_count_of_failures_also_while_its_worker_drains(
    drained: bool,
) -> None:
    world = World()

    def fail(request: int) -> None:
        world.ask(request, need("a"))
        worker = world.spawned[-1]
        world.do(world.scheduler.on_failed(worker, LoadFailed("broken"), world.clock))
        world.gone(worker)

    fail(1)
    fail(2)
    worker = world.bring(need("a"), 3)
    if drained:
        world.ask(4, need("b", 900 * MB))
        world.wait(8.5)
        assert world.state("a") is State.DRAINING
    world.finish(3)
    if drained:
        world.gone(worker)
        world.do(world.scheduler.on_abandoned(4, world.clock))
    else:
        world.do(world.scheduler.on_unload("a", world.clock))
        world.gone(worker)
    fail(5)
    world.ask(6, need("a"))
    assert 6 not in world.refused, "the first failure, not the third"


def test_answer_that_its_workers_death_cut_closes_nothing() -> None:
    world = World()
    for request in range(3):
        worker = world.bring(need("a"), request)
        world.do(world.scheduler.on_failed(worker, WorkerDied("killed"), world.clock))
        world.finish(request)
        world.gone(worker)
    world.ask(9, need("a"))
    assert world.refused[9].status == 503


def test_worker_that_dies_while_serving_is_restarted_only_for_waiters() -> None:
    world = World()
    world.bring(need("a"), 1)
    world.do(world.scheduler.on_failed("w1", WorkerDied("killed"), world.clock))
    world.finish(1)
    world.gone("w1")
    assert world.spawned == ["w1"]
    world.ask(2, need("a"))
    assert world.spawned == ["w1", "w2"]


def test_model_too_large_for_the_empty_machine_is_422_with_the_arithmetic() -> None:
    world = World()
    world.ask(1, need("huge", 2000 * MB, arithmetic="2000 MB weights"))
    error = world.refused[1]
    assert error.status == 422 and not error.retryable and "2000 MB weights" in error.message


def test_memory_held_by_others_is_503_not_422() -> None:
    world = World()
    world.foreign = 800 * MB
    world.ask(1, need("a", 400 * MB))
    assert world.refused[1].status == 503 and world.refused[1].retryable


def test_refusal_waits_while_a_load_moves_the_numbers() -> None:
    """The device counts what a load has just taken, the processes were asked a moment before: then
    it is missing twice, and what would come free seems less than it is."""
    w = World()
    w.ask(1, need("a"))
    w.hello(w.id_of("a"))
    stale = {w.id_of("a"): {"ram": PROCESS}}
    torn = DeviceMemory("ram", "ram", w.total, w.free())
    w.do(w.scheduler.on_measured([torn], stale, w.clock))
    w.do(w.scheduler.on_request(2, need("b", 900 * MB), w.clock))
    assert not w.refused
    w.ready(w.id_of("a"))
    w.finish(1)
    w.wait(10)
    w.gone("w1")
    w.hello(w.id_of("b"))
    w.ready(w.id_of("b"))
    assert w.granted[2] and not w.refused


def test_refusal_comes_once_a_load_has_settled() -> None:
    w = World()
    w.foreign = 300 * MB
    w.ask(1, need("a"))
    w.hello(w.id_of("a"))
    w.ask(2, need("b", 900 * MB))
    assert not w.refused
    w.ready(w.id_of("a"))
    assert w.refused[2].status == 503 and w.state("a") is State.READY, "nothing leaves in vain"


def test_request_that_runs_again_keeps_its_place_and_runs_alone() -> None:
    world = World()
    first = world.bring(need("a"), 1, slots=4)
    world.ask(2, need("a"))
    world.do(world.scheduler.on_failed(first, WorkerDied("died"), 1.0, died=True))
    world.finish(1)
    world.finish(2)
    world.clock = 2.0
    world.ask(3, need("a"))
    world.ask(4, need("a"), rerun_since=0.0)
    world.ask(5, need("a"), rerun_since=0.5)
    assert world.scheduler.line("a") == [4, 5, 3]
    world.gone(first)
    second = world.id_of("a")
    world.hello(second)
    world.ready(second, slots=4)
    assert world.granted.keys() == {1, 2, 4}
    world.finish(4)
    assert world.granted.keys() == {1, 2, 4, 5}
    world.finish(5)
    world.ask(6, need("a"))
    assert world.granted.keys() == {1, 2, 4, 5, 3, 6}


def test_full_queue_takes_back_what_ran_before() -> None:
    world = World(queue=1)
    world.bring(need("a"), 1, slots=1)
    world.ask(2, need("a"))
    world.ask(3, need("a"))
    world.ask(4, need("a"), rerun_since=0.0)
    assert world.refused.keys() == {3} and world.scheduler.line("a") == [2, 4]


def test_death_of_a_worker_that_had_one_suspect_is_not_held_against_the_model() -> None:
    world = World()
    for request in range(5):
        world.ask(request, need("a"), rerun_since=0.0)
        worker = world.id_of("a")
        world.hello(worker)
        world.ready(worker)
        world.do(world.scheduler.on_failed(worker, WorkerDied("died"), world.clock, died=True))
        world.finish(request)
        world.gone(worker)
    assert not world.refused and world.scheduler.breaker.failing(world.clock) == {}
