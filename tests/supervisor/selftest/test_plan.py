from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from uml.supervisor.selftest.plan import MOMENTS, WAYS, make_plan

swaps = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(swaps, seeds, st.booleans())
def test_equal_seeds_make_equal_plans(count: int, seed: int, chaos: bool) -> None:
    plan = make_plan(count, seed, chaos=chaos)
    assert plan == make_plan(count, seed, chaos=chaos)
    assert [r.number for r in plan] == list(range(count))


@settings(deadline=None)
@given(swaps, seeds)
def test_nothing_is_killed_without_chaos(count: int, seed: int) -> None:
    plan = make_plan(count, seed, chaos=False)
    assert not any(r.kill or r.restart_after_s is not None for r in plan)


@settings(deadline=None)
@given(st.integers(40, 300), seeds)
def test_every_moment_and_every_way_has_its_turn(count: int, seed: int) -> None:
    plan = make_plan(count, seed, chaos=True)
    moments = Counter(r.kill.moment for r in plan if r.kill)
    ways = Counter(r.way for r in plan)
    assert set(moments) == set(MOMENTS) and max(moments.values()) - min(moments.values()) <= 1
    assert set(ways) == set(WAYS) and max(ways.values()) - min(ways.values()) <= 1


@settings(deadline=None)
@given(swaps, seeds)
def test_the_last_supervisor_lives_long_enough_to_show_a_slope(count: int, seed: int) -> None:
    restarts = [
        r.number for r in make_plan(count, seed, chaos=True) if r.restart_after_s is not None
    ]
    assert restarts and max(restarts) <= 0.2 * count
