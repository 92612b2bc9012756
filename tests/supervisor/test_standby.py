"""Processes that have imported their library and wait for a model."""

from __future__ import annotations

from tests.supervisor.world import MB, PROCESS, World, need

#: There is room for one model of this size.
LARGE = 600 * MB


def after_a_swap(**limits: object) -> World:
    """a (w1) left for b (w2), which is idle; w3 is the standby that follows."""
    world = World(standby_auto=True, standby_delay_s=1.0, **limits)
    world.bring(need("a", LARGE, keep_alive_s=-1), 1)
    world.finish(1)
    world.wait(1.5)
    assert world.spawned == ["w1"], "nothing had to leave yet"
    world.ask(2, need("b", LARGE, keep_alive_s=-1))
    world.gone("w1")
    world.hello("w2")
    world.ready("w2")
    world.finish(2)
    world.wait(1.5)
    world.hello("w3")
    return world


def test_warm_standby_takes_the_next_load_without_a_spawn() -> None:
    world = World(standby={"b": {"ram": PROCESS}}, standby_delay_s=1.0)
    world.bring(need("a"), 1)
    world.finish(1)
    world.wait(1.5)
    assert world.spawned == ["w1", "w2"]
    world.hello("w2")
    world.ask(2, need("c"))
    assert world.spawned == ["w1", "w2"] and world.loaded == ["w1", "w2"]


def test_no_process_is_started_beside_a_running_answer() -> None:
    """It would slow it, and a model that is asked for meanwhile brings a process of its own."""
    world = World(standby={"b": {"ram": PROCESS}}, standby_delay_s=1.0)
    world.bring(need("a"), 1)
    world.wait(30)
    assert world.spawned == ["w1"]
    world.finish(1)
    world.wait(0.5)
    assert world.spawned == ["w1"], "its client's next request may come at once"
    world.wait(1)
    assert world.spawned == ["w1", "w2"]


def test_warm_standby_is_the_first_to_go_when_memory_is_short() -> None:
    world = World(standby={"b": {"ram": PROCESS}})
    world.bring(need("a", 500 * MB), 1)
    world.finish(1)
    world.wait(1.5)
    world.hello("w2")
    world.ask(2, need("c", 490 * MB, backend="other"))
    assert [w for w, _ in world.killed] == ["w2"]


def test_model_that_had_to_leave_is_expected_back_by_a_standby() -> None:
    world = after_a_swap()
    assert world.prepared == [("w1", "a"), ("w2", "b"), ("w3", "a")]
    world.ask(3, need("a", LARGE))
    world.gone("w2")
    assert world.spawned == world.loaded == ["w1", "w2", "w3"] and len(world.prepared) == 3


def test_standby_of_one_model_takes_another_just_as_well() -> None:
    world = after_a_swap()
    world.ask(3, need("c", LARGE))
    world.gone("w2")
    assert world.prepared[-2:] == [("w3", "a"), ("w3", "c")] and world.loaded[-1] == "w3"


def test_standby_that_nobody_uses_leaves_after_a_while() -> None:
    world = after_a_swap(spare_s=60.0)
    world.wait(59)
    assert not any(w == "w3" for w, _ in world.killed)
    world.wait(2)
    assert ("w3", "idle for 60 s") in world.killed
    world.gone("w3")
    world.wait(5)
    assert world.spawned == ["w1", "w2", "w3"], "and no other one comes in its place"


def test_who_unloads_a_model_gets_the_standbys_memory_too() -> None:
    world = after_a_swap()
    world.do(world.scheduler.on_unload("b", world.clock))
    assert [w for w, _ in world.killed] == ["w1", "w2", "w3"]
    world.wait(5)
    assert world.spawned == ["w1", "w2", "w3"]
