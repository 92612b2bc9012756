"""Figures of the benchmark: ratios pair by pair, percentiles, and a run against a real server."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.served import served
from uml.protocol.errors import Unavailable
from uml.supervisor.bench import Server, compare, percentile, question, ratio


def test_ratio_is_taken_pair_by_pair_so_that_drift_cancels() -> None:
    ours, theirs = [10.0, 20.0, 40.0], [5.0, 10.0, 20.0]
    found = ratio(ours, theirs)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20))
def test_interval_holds_the_median(values: list[float]) -> None:
    found = ratio(values, [1.0] * len(values))
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_percentile_interpolates_and_nothing_is_nan() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5 and percentile([5], 99) == 5
    assert math.isnan(percentile([], 50))


def test_prompts_never_begin_alike() -> None:
    assert len({question()[:16] for _ in range(100)}) == 100


async def test_compare_measures_each_server_in_every_round(tmp_path: Path) -> None:
    models = {"alpha": {"options": {"slots": 4, "token_delay": 0.002}}}
    async with served(tmp_path, models=models) as s:
        servers = [Server(name, s.url, "alpha") for name in ("one", "two")]
        said: list[str] = []
        found = await compare(servers, [1, 2], 2, 8, said.append)
        assert len(said) == 8
        for by_streams in found.values():
            assert [len(by_streams[n]) for n in (1, 2)] == [2, 2]
            assert all(r["tokens_per_s"] > 0 for rounds in by_streams.values() for r in rounds)
            assert by_streams[1][0]["gap_p50_s"] >= 0.001


async def test_compare_stops_at_a_server_that_fails(tmp_path: Path) -> None:
    async with served(tmp_path) as s:
        with pytest.raises(Unavailable, match="bad: 404"):
            await compare([Server("bad", s.url, "nope")], [1], 1, 4, lambda _: None)
