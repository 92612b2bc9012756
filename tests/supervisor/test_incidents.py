"""What went wrong in other systems of this kind, as events: each was somebody's lost request,
stuck model or memory promised twice."""

from __future__ import annotations

import pytest

from tests.supervisor.world import MB, World, need
from uml.protocol.errors import LoadFailed, WorkerDied
from uml.supervisor.states import Need, State


def big(model: str, **extra: object) -> Need:
    """Two of these do not fit together."""
    return need(model, 700 * MB, **extra)


def come_up(world: World, model: str) -> str:
    """Let everything that is being killed go and `model` come up; its worker."""
    for worker in list(world.scheduler.workers.values()):
        if worker.state is State.KILLING:
            world.gone(worker.id)
    worker = world.id_of(model)
    world.hello(worker)
    world.ready(worker)
    return worker


def test_option_change_of_the_victim_during_eviction_comes_with_its_next_load() -> None:
    world = World(max_wait_s=0.0)
    world.bring(big("a", n_ctx=2048), 1)
    world.ask(2, big("b"))
    assert world.state("a") is State.DRAINING
    world.ask(3, big("a", n_ctx=8192))
    world.finish(1)
    come_up(world, "b")
    world.finish(2)
    a = come_up(world, "a")
    assert world.granted == {1: "w1", 2: "w2", 3: a}
    assert world.scheduler.workers[a].need.n_ctx == 8192  # type: ignore[union-attr]


def test_option_change_of_the_newcomer_during_eviction_asks_for_the_larger_room() -> None:
    world = World(max_wait_s=0.0)
    a = world.bring(need("a", 500 * MB), 1)
    small = world.bring(need("s", 300 * MB), 9)
    world.finish(9)
    world.ask(2, need("b", 450 * MB, n_ctx=2048))
    assert world.state("s") is None and world.state("a") is State.READY, "the idle one suffices"
    world.ask(3, need("b", 700 * MB, n_ctx=8192))
    assert world.state("a") is State.DRAINING
    world.gone(small)
    world.hello(world.id_of("b"))
    assert world.state("b") is State.STANDBY, "what would do for the smaller does not load it"
    world.finish(1)
    world.gone(a)
    assert world.state("b") is State.LOADING
    world.ready(world.id_of("b"))
    assert world.granted.keys() >= {2, 3}
    assert world.scheduler.worker_of("b").need.n_ctx == 8192  # type: ignore[union-attr]


def test_evict_all_for_the_largest_happens_once_and_all_come_back_on_demand() -> None:
    world = World(total=1000 * MB)
    for request, model in enumerate("xyz"):
        world.bring(need(model, 250 * MB), request)
        world.finish(request)
    world.ask(10, need("huge", 950 * MB))
    assert sorted(w for w, _ in world.killed) == ["w1", "w2", "w3"]
    for worker in ("w1", "w2", "w3"):
        world.gone(worker)
    huge = come_up(world, "huge")
    assert world.granted[10] == huge and len(world.killed) == 3
    world.finish(10)
    for request, model in enumerate("xyz", 20):
        world.ask(request, need(model, 250 * MB))
    assert [w for w, _ in world.killed[3:]] == [huge]
    world.gone(huge)
    for request, model in enumerate("xyz", 20):
        assert come_up(world, model) == world.granted[request]


def test_evict_all_in_vain_is_refused_and_evicts_nobody_else() -> None:
    """Everybody made way and a stranger took the memory: the claim ends with a reason, and what
    comes after does not start the round again."""
    world = World(total=1000 * MB)
    for request, model in enumerate("xy"):
        world.bring(need(model, 400 * MB), request)
        world.finish(request)
    world.ask(10, need("huge", 950 * MB))
    world.foreign = 300 * MB
    for worker in ("w1", "w2"):
        world.gone(worker)
    assert world.refused[10].status == 503 and world.refused[10].retry_after_s
    assert world.state("huge") is None
    world.gone("w3")
    world.bring(need("x", 400 * MB), 11)
    world.ask(12, need("huge", 950 * MB))
    assert world.refused[12].status == 503 and world.state("x") is State.READY


def test_load_that_failed_for_want_of_memory_leaves_the_others_in_peace() -> None:
    world = World()
    world.bring(need("a"), 1)
    world.ask(2, need("b"))
    b = world.id_of("b")
    world.hello(b)
    world.do(world.scheduler.on_failed(b, LoadFailed("out of memory"), world.clock))
    assert world.refused[2].message == "out of memory" and world.state("a") is State.READY
    assert [w for w, _ in world.killed] == [b]


def test_unload_of_the_newcomer_lets_the_victim_serve_on() -> None:
    world = World(max_wait_s=0.0)
    world.bring(big("a"), 1)
    world.ask(2, big("b"))
    b = world.id_of("b")
    world.do(world.scheduler.on_unload("b", world.clock))
    assert world.refused[2].code == "cancelled" and [w for w, _ in world.killed] == [b]
    assert world.state("a") is State.READY
    world.ask(3, big("a"))
    assert world.granted[3] == "w1"


def test_unload_of_a_draining_victim_is_not_undone_when_nobody_wants_its_room() -> None:
    world = World(max_wait_s=0.0)
    world.bring(big("a"), 1)
    world.ask(2, big("b"))
    world.do(world.scheduler.on_unload("a", world.clock))
    world.do(world.scheduler.on_abandoned(2, world.clock))
    assert world.state("a") is State.DRAINING
    world.finish(1)
    assert world.killed[-1] == ("w1", "evicted for b")


def test_reload_of_the_victim_during_its_swap_serves_both_in_order() -> None:
    """A is to make way for B when somebody wants it with a larger context."""
    world = World(max_wait_s=8.0)
    world.bring(big("a", n_ctx=1024), 1)
    world.ask(2, big("b"))
    world.ask(3, big("a", n_ctx=4096))
    assert world.state("a") is State.DRAINING and world.granted.keys() == {1}
    world.finish(1)
    come_up(world, "b")
    world.finish(2)
    a = come_up(world, "a")
    assert world.granted[3] == a


def test_reload_of_a_model_whose_settings_changed_while_it_comes_in() -> None:
    """Its load is ended, who waited is told, and the next request gets the new settings."""
    world = World()
    world.bring(big("a"), 1)
    world.finish(1)
    world.ask(2, big("b", n_ctx=1024))
    world.do(world.scheduler.on_unload("b", world.clock))
    assert world.refused[2].code == "cancelled"
    world.ask(3, big("b", n_ctx=2048))
    b = come_up(world, "b")
    assert world.granted[3] == b
    assert world.scheduler.workers[b].need.n_ctx == 2048  # type: ignore[union-attr]


def test_two_swaps_crossing_on_two_devices_wait_for_each_other_only_once() -> None:
    """A and B change places: each wants what the other one holds."""
    world = World(total=10_000 * MB, others={"g0": 100 * MB, "g1": 100 * MB}, max_wait_s=1.0)
    on = [{"ram": 60 * MB, "g0": 80 * MB}, {"ram": 60 * MB, "g1": 80 * MB}]
    a, b = world.bring(need("a", on[0]), 1), world.bring(need("b", on[1]), 2)
    world.ask(3, need("c", on[0]))
    world.ask(4, need("d", on[1]))
    world.wait(3)
    assert world.state("a") is world.state("b") is State.DRAINING
    world.finish(1)
    world.finish(2)
    world.gone(b)
    world.gone(a)
    assert world.granted.keys() == {1, 2}
    assert world.granted.get(3) is None
    c, d = come_up(world, "c"), come_up(world, "d")
    assert world.granted[3] == c and world.granted[4] == d


def test_request_that_comes_with_the_kill_gets_a_new_worker() -> None:
    world = World()
    world.bring(big("a", keep_alive_s=5.0), 1)
    world.finish(1)
    world.wait(6)
    assert [w for w, _ in world.killed] == ["w1"]
    world.ask(2, big("a"))
    assert world.state("a") is State.STARTING and world.loaded == ["w1"]
    world.hello("w2")
    assert world.loaded == ["w1"], "the first one's bytes are not back"
    world.gone("w1")
    world.ready("w2")
    assert world.granted[2] == "w2"


@pytest.mark.parametrize("late", ["hello", "ready", "failed", "finished"])
def test_late_words_of_a_worker_that_is_being_killed_change_nothing(late: str) -> None:
    world = World()
    world.ask(1, big("a"))
    world.hello("w1")
    world.do(world.scheduler.on_unload("a", world.clock, force=True))
    before = (list(world.killed), dict(world.granted), world.scheduler.breaker.failing(0.0))
    scheduler = world.scheduler
    world.do(
        {
            "hello": lambda: scheduler.on_hello("w1", 0.0),
            "ready": lambda: scheduler.on_ready("w1", 4, 0.0),
            "failed": lambda: scheduler.on_failed("w1", WorkerDied("late"), 0.0),
            "finished": lambda: scheduler.on_finished(1, 0.0),
        }[late]()
    )
    assert scheduler.workers["w1"].state is State.KILLING
    assert before == (world.killed, world.granted, scheduler.breaker.failing(0.0))


def test_model_that_is_stuck_in_killing_blocks_nobody_who_does_not_need_its_bytes() -> None:
    world = World()
    stuck = world.bring(need("a", 500 * MB), 1)
    world.do(world.scheduler.on_unload("a", world.clock, force=True))
    assert world.scheduler.workers[stuck].state is State.KILLING
    world.bring(need("c", 300 * MB), 2)
    world.ask(3, need("d", 300 * MB))
    assert world.state("d") is not State.LOADING, "its bytes are not promised to anybody"
    world.gone(stuck, residue=450 * MB)
    world.hello(world.id_of("d"))
    assert world.state("d") is State.STANDBY, "nor what has not come back"
    world.residue_goes(stuck)
    assert world.state("d") is State.LOADING


def test_newcomer_that_dies_while_its_victim_drains_lets_it_serve_on() -> None:
    world = World(max_wait_s=0.0)
    world.bring(big("a"), 1)
    world.ask(2, big("b"))
    died = LoadFailed("was killed")
    for attempt in (2, 3):
        worker = world.id_of("b")
        world.do(world.scheduler.on_failed(worker, died, world.clock, died=True))
        world.gone(worker)
        if attempt == 2:
            assert world.state("a") is State.DRAINING, "the second attempt waits for the room"
    assert 2 in world.refused and world.state("a") is State.READY


def test_victim_that_dies_while_it_drains_makes_way_all_the_same() -> None:
    world = World(max_wait_s=0.0)
    a = world.bring(big("a"), 1)
    world.ask(2, big("b"))
    world.do(world.scheduler.on_failed(a, WorkerDied("crash"), world.clock, died=True))
    world.finish(1)
    assert world.granted.get(2) is None
    assert come_up(world, "b") == world.granted[2]


def test_endless_reload_between_two_contexts_does_not_happen() -> None:
    """Two clients with different contexts: the larger one serves both."""
    world = World()
    world.bring(need("a", 300 * MB, n_ctx=1024), 1)
    world.finish(1)
    world.ask(2, need("a", 500 * MB, n_ctx=4096))
    come_up(world, "a")
    world.finish(2)
    for request in range(3, 9):
        world.ask(request, need("a", n_ctx=(1024, 4096)[request % 2]))
        assert world.granted[request] == "w2"
        world.finish(request)
    assert len(world.killed) == 1


def test_urgent_load_does_not_wait_for_a_claim_that_waits_for_it() -> None:
    """The claimant of all that is free can get no further, for the urgent one's process is in its
    way; the urgent one could not load, for all that is free was claimed."""
    world = World()
    world.ask(1, need("a", 300 * MB))
    world.do(world.scheduler.on_abandoned(1, world.clock))
    world.ask(2, need("d", 950 * MB))
    world.ask(3, need("a", 300 * MB), urgent=True)
    world.hello("w2")
    world.gone("w1", residue=50 * MB)
    world.hello("w3")
    assert world.state("a") is State.LOADING
    world.ready("w3")
    world.finish(3)
    world.gone("w3")
    world.residue_goes("w1")
    assert world.state("d") is State.LOADING


def test_request_that_runs_again_does_not_take_the_room_its_worker_was_making() -> None:
    """A was leaving for B when it died: B comes first, although A's request is the older one."""
    world = World(max_wait_s=0.0)
    a = world.bring(big("a"), 1)
    world.wait(1)
    world.ask(2, big("b"))
    world.do(world.scheduler.on_failed(a, WorkerDied("crash"), world.clock, died=True))
    world.finish(1)
    world.ask(3, big("a"), rerun_since=0.0)
    world.gone(a)
    assert come_up(world, "b") == world.granted[2] and 3 not in world.granted
    world.finish(2)
    assert come_up(world, "a") == world.granted[3]


def test_two_claims_whose_victims_are_gone_do_not_wait_for_each_other() -> None:
    """Room for either, not for both, beside the processes that wait already."""
    world = World()
    world.ask(1, need("d", 950 * MB))
    world.do(world.scheduler.on_abandoned(1, world.clock))
    world.ask(2, need("a", 300 * MB))
    world.ask(3, need("d", 950 * MB), urgent=True)
    world.ask(4, need("c", 700 * MB), urgent=True)
    for model in ("c", "d", "a"):
        for _ in range(3):
            for worker in list(world.scheduler.workers.values()):
                if worker.state is State.KILLING:
                    world.gone(worker.id)
                elif worker.state is State.STARTING:
                    world.hello(worker.id)
        world.ready(world.id_of(model))
        world.wait(3)
        for request in list(world.scheduler.workers[world.id_of(model)].busy):
            world.finish(request)
    assert world.granted.keys() == {2, 3, 4}
