from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml.supervisor.selftest.saboteur import Struck
from uml.supervisor.selftest.traffic import Asked
from uml.supervisor.selftest.verdict import Log, Sample, Swap, judge, slope


def receipt(verified: str = "yes", ms: float = 10.0) -> dict[str, Any]:
    return {
        "model": "a",
        "worker": "w1",
        "reason": "swap",
        "verified": verified,
        "ms": ms,
        "pids": [1],
    }


def log(samples: int = 200) -> Log:
    return Log(
        planned=2,
        swaps=[Swap("a", "swap", 0.3, False), Swap("b", "ask", 0.9, True)],
        samples=[Sample(1, 20, 50_000_000 + i % 7 * 4096, i > 100) for i in range(samples)],
        asked=[Asked("a", True, 0.0, "right"), Asked("a", True, 0.0, "cut", "died")],
        struck=[Struck("load", "loading", False, 1.0)],
        receipts={1: receipt(), 2: receipt(ms=30.0)},
        restarts_s=[0.5],
    )


def failed(given: Log) -> list[str]:
    return [check.name for check in judge(given).checks if not check.ok]


def test_run_in_which_everything_held() -> None:
    verdict = judge(log())
    assert verdict.ok, verdict.checks
    figures = verdict.to_map()
    assert figures["release_s"] == pytest.approx({"p50": 0.02, "p99": 0.0298, "n": 2})
    assert figures["swap_s"]["n"] == figures["disturbed_swap_s"]["n"] == 1
    assert figures["kills"] == {"spawn": 0, "load": 1, "stream": 0, "drain": 0}
    assert figures["requests"] == {"right": 1, "wrong": 0, "cut": 1, "lost": 0}


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        ({"planned": 3}, "swaps"),
        ({"wrong": ["no rest within 180 s"]}, "swaps"),
        ({"asked": [Asked("a", True, 0.0, "right"), Asked("a", True, 0.0, "lost")]}, "requests"),
        ({"asked": [Asked("a", True, 0.0, "right"), Asked("a", True, 0.0, "wrong")]}, "answers"),
        ({"asked": []}, "requests"),
        ({"receipts": {1: receipt("no")}}, "release"),
        ({"receipts": {1: receipt("unknown")}}, "release"),
        ({"receipts": {}}, "release"),
        ({"samples": [Sample(1, 20, 1, False, ("orphans: process 3",))]}, "orphans"),
        ({"wrong": ["orphans: process 3"]}, "orphans"),
        ({"samples": [Sample(1, 20, 1, False, ("ledger: 3 bytes",))]}, "ledger"),
        ({"samples": [Sample(1, 20, 1, False, ("residue: 3 bytes",))]}, "residue"),
        ({"samples": [Sample(1, 20 + i // 20, 5_000_000) for i in range(100)]}, "fds"),
        ({"samples": [Sample(1, 20, 5_000_000 + i * 5_000, True) for i in range(200)]}, "memory"),
    ],
)
def test_each_fault_fails_its_own_check(spoil: dict[str, Any], name: str) -> None:
    assert name in failed(replace(log(), **spoil))


def test_slope_is_told_for_each_supervisor_by_itself() -> None:
    """A restart begins anew; what the second one grows is not hidden by where it began."""
    first = [Sample(1, 20, 80_000_000, True) for _ in range(200)]
    second = [Sample(2, 20, 50_000_000 + 8_000 * i, True) for i in range(200)]
    assert failed(replace(log(), samples=first + second)) == ["memory"]


def filling(per_swap: int, full_at: int, leak: int = 0) -> Log:
    """What a supervisor keeps fills up at first; beside that it leaks."""
    grown = [per_swap * min(i, full_at) + leak * i for i in range(400)]
    samples = [Sample(1, 20, 50_000_000 + n, i >= full_at) for i, n in enumerate(grown)]
    return replace(log(), samples=samples)


@settings(deadline=None)
@given(st.integers(1_000, 50_000), st.integers(0, 340))
def test_what_fills_up_to_its_limit_is_no_growth(per_swap: int, full_at: int) -> None:
    assert judge(filling(per_swap, full_at)).ok


@settings(deadline=None)
@given(st.integers(0, 50_000), st.integers(0, 340), st.integers(4_200, 100_000))
def test_leak_is_found_behind_what_fills_up(per_swap: int, full_at: int, leak: int) -> None:
    assert failed(filling(per_swap, full_at, leak)) == ["memory"]


def test_slope_is_not_told_while_what_is_kept_still_fills_up() -> None:
    verdict = judge(filling(5_000, full_at=390))
    assert verdict.ok and verdict.figures["rss_slope"] == []
    assert any("too few swaps" in check.text for check in verdict.checks)


def test_run_that_was_bounded_in_time_may_end_early() -> None:
    assert judge(replace(log(), planned=500, time_up=True)).ok
    assert failed(replace(log(), planned=500, time_up=True, swaps=[])) == ["swaps"]


def test_short_run_tells_no_slope() -> None:
    verdict = judge(log(samples=30))
    assert verdict.ok
    assert any("too few swaps" in check.text for check in verdict.checks)


@settings(deadline=None)
@given(st.floats(-1000, 1000), st.lists(st.integers(0, 99), max_size=10, unique=True))
def test_slope_survives_a_few_outliers(per_step: float, outliers: list[int]) -> None:
    values = [per_step * i for i in range(100)]
    for at in outliers:
        values[at] += 1e6
    assert slope(values) == pytest.approx(per_step, abs=abs(per_step) * 0.01 + 1e-6)
