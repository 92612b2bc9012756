"""What models took is learned: peaks per way of running, never below weights and KV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.house import MB, house
from tests.supervisor.machine.machines import machine
from uml.supervisor.footprints import LIVES, Footprints, floor, largest, ram_of
from uml.supervisor.placement import Demand, Rules, place


class Shelf:
    """A registry's memory of footprints."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[dict[str, int]]] = {}
        self.writes = 0

    def footprint(self, content_hash: str, key: str) -> list[dict[str, int]] | None:
        return self.rows.get((content_hash, key))

    def record_footprint(self, content_hash: str, key: str, lives: list[dict[str, int]]) -> None:
        self.writes += 1
        self.rows[content_hash, key] = [dict(life) for life in lives]


def make(version: str = "1") -> tuple[Footprints, Shelf]:
    shelf = Shelf()
    return Footprints(shelf, lambda _: version, clock=lambda: 0.0), shelf  # type: ignore[arg-type]


def live(footprints: Footprints, *looks: int, **options: Any) -> None:
    first, *rest = looks
    footprints.begin("w1", "hash", "b", options, {"ram": first})
    for ram in rest:
        footprints.look("w1", {"ram": ram})
    footprints.end("w1")


def test_peak_under_work_is_what_is_learned() -> None:
    footprints, _ = make()
    live(footprints, 100, 400, 250, n_ctx=512)
    assert footprints.learned("hash", "b", {"n_ctx": 512}) == {"ram": 400}


def test_other_options_files_backends_and_versions_are_other_footprints() -> None:
    footprints, shelf = make()
    live(footprints, 100, n_ctx=512)
    assert footprints.learned("hash", "b", {"n_ctx": 1024}) is None
    assert footprints.learned("other", "b", {"n_ctx": 512}) is None
    assert footprints.learned("hash", "c", {"n_ctx": 512}) is None
    newer = Footprints(shelf, lambda _: "2")  # type: ignore[arg-type]
    assert newer.learned("hash", "b", {"n_ctx": 512}) is None


def test_an_odd_life_is_forgotten_after_a_few_ordinary_ones() -> None:
    footprints, _ = make()
    live(footprints, 900)
    for _ in range(LIVES - 1):
        live(footprints, 100)
        assert footprints.learned("hash", "b", {}) == {"ram": 900}
    live(footprints, 100)
    assert footprints.learned("hash", "b", {}) == {"ram": 100}


def test_what_a_leak_took_is_not_learned() -> None:
    footprints, _ = make()
    live(footprints, 100)
    footprints.begin("w2", "hash", "b", {}, {"ram": 100})
    footprints.look("w2", {"ram": 5000})
    footprints.end("w2", leaked=True)
    assert footprints.learned("hash", "b", {}) == {"ram": 100}


def test_a_supervisor_that_is_killed_has_learned_the_peak_already() -> None:
    footprints, shelf = make()
    footprints.begin("w1", "hash", "b", {}, {"ram": 100})
    footprints.look("w1", {"ram": 300})
    again = Footprints(shelf, lambda _: "1")  # type: ignore[arg-type]
    assert again.learned("hash", "b", {}) == {"ram": 300}
    before = shelf.writes
    footprints.look("w1", {"ram": 301})
    assert shelf.writes == before, "a third of a percent is not worth a write"
    footprints.end("w1")
    assert again.learned("hash", "b", {}) == {"ram": 301}


def test_parked_states_are_not_counted_and_mapped_weights_are() -> None:
    held = ram_of({"ram": 500, "cuda0": 9}, {"mapped": 100, "parked": 250})
    assert held == {"ram": 350, "cuda0": 9}


@pytest.mark.parametrize("name", ["office-16gb", "rtx4090", "2x-rtx3090", "8x-h100", "rtx3060"])
@given(layers=st.integers(0, 120 << 30), tail=st.integers(0, 2 << 30))
def test_floor_is_weights_and_cache_and_nothing_else(name: str, layers: int, tail: int) -> None:
    devices = machine(name)
    demand = Demand(layers, tail, 200 * MB, 300 * MB, 100 * MB, layers=32)
    rules = Rules(("cpu", "cuda"), "layers", offload=True)
    placed = place(demand, devices, rules, {d.name: d.total_bytes for d in devices})
    assert placed is not None
    least = floor(demand, placed)
    assert abs(sum(least.values()) - layers - tail) < 2 * 32, "to the byte, save rounding"
    assert all(least[d] <= placed.bytes[d] for d in least)


def test_largest_is_per_device() -> None:
    assert largest([{"ram": 1, "cuda0": 5}, {"ram": 3}]) == {"cuda0": 5, "ram": 3}


async def test_next_admission_counts_with_what_the_last_worker_took(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        # Says 10 MB, takes 60 more when asked.
        a = h.model("a", weights_bytes=10 * MB, options={"ram_bytes": 30 * MB})
        before = h.pool.commands.plan(a)["need_bytes"]["ram"]
        await h.ask(a, f"eat_memory={60 * MB}")
        await h.pool.commands.unload("a")
        took = h.pool._needs.size(a).learned
        assert took and 90 * MB < took["ram"] < 160 * MB
        plan = h.pool.commands.plan(a)
        assert plan["need_bytes"]["ram"] == took["ram"] > before
        assert "it took" in plan["reason"]


async def test_light_use_does_not_talk_weights_away(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", weights_bytes=300 * MB)  # of which it touches nothing
        await h.ask(a)
        await h.pool.commands.unload("a")
        assert h.pool.commands.plan(a)["need_bytes"]["ram"] == 300 * MB
