"""New configurations at any moment: what holds of the scheduler holds of it then, too."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.supervisor.test_scheduler_machine import MODELS, SchedulerMachine
from tests.supervisor.world import MB, PROCESS, World, need
from uml.protocol.errors import InvalidModel, UmlError
from uml.supervisor.states import Limits, Need, State


class ReloadMachine(SchedulerMachine):
    @rule(
        most=st.sampled_from([None, 1, 2]),
        max_wait=st.sampled_from([0.0, 8.0]),
        pinned=st.sampled_from(["", "", "a"]),
        standby=st.booleans(),
    )
    def configure(self, most: int | None, max_wait: float, pinned: str, standby: bool) -> None:
        limits = Limits(
            max_loaded=most,
            max_wait_s=max_wait,
            linger_s=0.0,
            standby={"b": {"ram": PROCESS}} if standby else {},
        )

        def adjusted(old: Need) -> Need:
            return replace(old, pinned=old.model == pinned, places=())

        self.pinned = pinned
        self.world.do(self.world.scheduler.on_configured(limits, adjusted, self.world.clock))
        spares = [w for w in self.world.scheduler.workers.values() if not w.need]
        assert standby or all(w.state is State.KILLING for w in spares)

    @rule(model=MODELS, ctx=st.sampled_from([0, 4096]), able=st.booleans())
    def change(self, model: str, ctx: int, able: bool) -> None:
        scheduler = self.world.scheduler
        before, line = scheduler.worker_of(model), scheduler.line(model)
        answer = replace(self.wanted(model, ctx), bytes={"ram": 400 * MB})
        needs: dict[int, Need | UmlError] = {
            r: answer if able else InvalidModel("no more") for r in line
        }
        self.world.do(scheduler.on_changed(model, needs, "changed", self.world.clock))
        if before is not None:
            assert before.final or before.state is State.KILLING
            assert before.busy or before.state is State.KILLING, "running answers are not cut"
        if not able:
            assert not scheduler.line(model) and all(r in self.world.refused for r in line)
        for request in line:
            waits = request in scheduler.line(model)
            assert waits or request in self.world.granted or request in self.world.refused

    def teardown(self) -> None:
        self.configure(None, 4.0, "", True)
        super().teardown()


TestReloads = ReloadMachine.TestCase
TestReloads.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_who_waits_keeps_the_place_in_the_line() -> None:
    world = World()
    for request in (1, 2, 3):
        world.ask(request, need("m", 300 * MB))
    changed: dict[int, Need | UmlError] = {r: need("m", 200 * MB, n_ctx=8) for r in (1, 2, 3)}
    world.do(world.scheduler.on_changed("m", changed, "changed", world.clock))
    assert world.scheduler.line("m") == [1, 2, 3]
    assert [reason for _, reason in world.killed] == ["changed"]
    (new,) = (w for w in world.scheduler.workers.values() if w.state is not State.KILLING)
    assert new.need and new.need.n_ctx == 8


def test_places_of_a_new_limit_are_counted_for_what_is_loaded() -> None:
    world = World()
    for request, model in enumerate("ab"):
        world.ask(request, need(model, 100 * MB, keep_alive_s=-1.0))
        world.hello(world.spawned[-1])
        world.ready(world.loaded[-1])
    assert set(world.granted) == {0, 1}
    world.do(world.scheduler.on_configured(Limits(max_loaded=2), lambda n: n, world.clock))
    world.ask(2, need("c", 100 * MB))
    assert 2 not in world.granted and len(world.loaded) == 2
    world.finish(0)
    world.wait(10.0)
    assert [world.model_of[w] for w, _ in world.killed] == ["a"]
