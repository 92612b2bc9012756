"""Groups and conflicts: who may not be loaded together."""

from __future__ import annotations

from pathlib import Path

from tests.supervisor.house import house
from tests.supervisor.world import MB, World, need
from uml.supervisor.config import ModelConfig
from uml.supervisor.places import places
from uml.supervisor.states import State

ALIASES = {"big": "a"}


def of(model: str, **tables: ModelConfig) -> set[str]:
    return set(places(model, tables, lambda name: ALIASES.get(name, name)))


def test_places_are_shared_by_a_group_and_by_two_in_conflict_whoever_said_so() -> None:
    tables = {
        "a": ModelConfig(group="g"),
        "b": ModelConfig(group="g", conflicts_with=("c",)),
        "d": ModelConfig(conflicts_with=("big",)),
    }
    a, b, c, d = (of(m, **tables) for m in "abcd")
    assert a & b and b & c and a & d
    assert not a & c and not b & d and not c & d and not of("e", **tables)


def test_models_in_conflict_are_never_loaded_together_and_others_stay() -> None:
    world = World(total=100_000 * MB)
    a = world.bring(need("a", places=("place:a|b",)), 1)
    world.bring(need("c"), 2)
    for request in (1, 2):
        world.finish(request)
    world.ask(3, need("b", places=("place:a|b",)))
    assert [w for w, _ in world.killed] == [a]
    world.hello(world.id_of("b"))
    assert world.state("b") is State.STANDBY
    world.gone(a)
    assert world.state("b") is State.LOADING and world.state("c") is State.READY


def test_conflict_with_a_pinned_model_is_refused_with_its_name() -> None:
    world = World(total=100_000 * MB)
    world.bring(need("a", places=("place:a|b",), pinned=True), 1)
    world.finish(1)
    world.ask(2, need("b", places=("place:a|b",)))
    assert world.refused[2].status == 409 and "pinned (a)" in world.refused[2].message


async def test_group_of_two_takes_turns_with_real_workers(tmp_path: Path) -> None:
    models = {"a": {"group": "g"}, "b": {"group": "g"}}
    async with house(tmp_path, models=models) as h:
        a, b, c = h.model("a"), h.model("b"), h.model("c")
        for model in (a, c, b):
            assert (await h.ask(model)).text.startswith(model.id)
        assert {w["model"] for w in h.pool.status()["workers"]} == {"b", "c"}
        assert not any("place" in d for w in h.pool.status()["workers"] for d in w["lease_bytes"])
