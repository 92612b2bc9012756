"""The simulator: it simulates what it says, and the scheduler keeps its promises in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation import report
from tests.simulation.machine import IMPORT_S, Arrival, Machine, Model
from tests.simulation.run import POLICIES, Measured, run
from tests.simulation.scenarios import (
    GB,
    GENERATED,
    Scenario,
    Stream,
    fleet,
    recorded,
    skewed,
    turns,
)
from uml.supervisor.budget import Budget
from uml.supervisor.scheduler import Scheduler
from uml.supervisor.states import Limits

A, B = (Model(name, 8 * GB, load_s=2.0, kill_s=0.1, slots=2) for name in "ab")


def by_hand(*arrivals: Arrival) -> Scenario:
    return Scenario("hand", "by hand", (A, B), (10 * GB,), lambda: Stream(iter(arrivals)))


@pytest.mark.parametrize("policy", POLICIES)
def test_waits_are_what_the_times_of_the_catalogue_come_to(policy: str) -> None:
    found = run(by_hand(Arrival(0.0, 0, 3.0), Arrival(10.0, 0, 1.0), Arrival(20.0, 1, 1.0)), policy)
    first, loaded, swapped = found.result.waits
    assert first == pytest.approx(IMPORT_S + 2.0) and loaded == 0.0
    overlapped = policy == "uml"  # the import runs while the victim goes
    assert swapped == pytest.approx((0.0 if overlapped else 0.1) + IMPORT_S + 2.0)
    assert found.result.answered == 3 and found.result.loads == 2 and found.result.kills == 1


def test_memory_in_use_is_that_of_models_while_they_answer() -> None:
    found = run(by_hand(Arrival(0.0, 0, 5.0), Arrival(1.0, 0, 5.0)), "uml")
    assert found.result.seconds == pytest.approx(IMPORT_S + 7.0)
    assert found.result.utilisation == pytest.approx(5.0 * 8 / ((IMPORT_S + 7.0) * 10))


@pytest.mark.parametrize("policy", POLICIES)
def test_no_model_is_sent_away_while_its_waiters_are_not_served(policy: str) -> None:
    """Else two who want the same room can load and evict each other for ever."""
    found = run(GENERATED["house"](20_000), policy)
    assert found.result.answered == 20_000 and found.result.still_waiting == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", GENERATED)
def test_every_request_is_answered_and_the_same_comes_out_twice(name: str, policy: str) -> None:
    make = {"fleet": lambda n: fleet(n, devices=6, count=40, rate=1.0)}.get(name, GENERATED[name])
    one, two = (run(make(400), policy) for _ in range(2))
    assert one.result.waits == two.result.waits and one.result.loads == two.result.loads
    assert one.result.answered > 300 and not one.result.refused
    if one.scenario.until is None:
        assert one.result.answered == 400 and one.result.still_waiting == 0


def test_swaps_serve_more_and_the_rare_model_waits_no_longer_than_promised() -> None:
    """The bars of the real measurement, in numbers."""
    ours, theirs = (run(turns(2000), policy).result for policy in ("uml", "fifo"))
    assert ours.answered >= 1.1 * theirs.answered
    ours, theirs = (run(skewed(2000), policy).result for policy in ("uml", "fifo"))
    assert ours.answered >= theirs.answered
    answer_s, load_s = 1.0, 0.5 + IMPORT_S + 0.05
    assert max(ours.waits_of[1]) <= 8.0 + answer_s + load_s < max(theirs.waits_of[1])


def test_newcomers_spread_over_all_devices() -> None:
    made = Scheduler(Budget(), Limits())
    models = [Model(f"m{i}", 40 * GB, load_s=1.0) for i in range(60)]

    def arrivals() -> Iterator[Arrival]:
        return (Arrival(i * 0.2, i % 60, 1.0) for i in range(600))

    result = Machine(made, models, (80 * GB,) * 8).run(Stream(arrivals()))
    assert result.answered == 600
    assert len({d for lease in made.budget.leases.values() for d in lease.bytes} - {"ram"}) == 8
    assert max(result.waits) < 30


def test_recorded_requests_are_simulated_again(tmp_path: Path) -> None:
    file = tmp_path / "day.jsonl"
    lines = [
        {"devices": [10 * GB]},
        {"load": {"name": "a", "bytes": 8 * GB, "load_s": 1.0}},
        {"load": {"name": "b", "bytes": 8 * GB, "load_s": 2.0}},
        {"at": 0.0, "model": "a", "seconds": 1.0},
        {"at": 5.0, "model": "b", "seconds": 1.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = run(recorded(file), "uml")
    assert found.scenario.name == "day" and found.result.answered == 2
    assert found.result.waits[1] == pytest.approx(IMPORT_S + 2.0)


@pytest.mark.leaks("fd")  # matplotlib keeps its fonts open
def test_report_is_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found: list[Measured] = [run(turns(100), policy) for policy in POLICIES]
    assert len({len(report.row(m)) for m in found} | {len(report.HEAD)}) == 1
    report.plot(found, tmp_path / "waits.svg")
    assert (tmp_path / "waits.svg").stat().st_size > 10_000
