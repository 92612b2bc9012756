"""What may be promised, who has to go, where a model is put."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.supervisor.budget import Budget, DeviceMemory
from uml.supervisor.eviction import Candidate, pick_victims

GB = 1 << 30


def ram(total: int, free: int) -> DeviceMemory:
    return DeviceMemory("ram", "ram", total, free)


def gpu(name: str, total: int, free: int) -> DeviceMemory:
    return DeviceMemory(name, "cuda", total, free)


def test_budget_promises_no_more_than_free_less_what_is_promised_but_untouched() -> None:
    budget = Budget()
    budget.measured([ram(16, 10)])
    budget.grant("a", {"ram": 6})
    assert budget.available("ram") == 4
    budget.measured([ram(16, 5)], {"a": {"ram": 5}})
    assert budget.available("ram") == 4, "touching what was promised changes nothing"


def test_budget_respects_memory_of_other_processes() -> None:
    budget = Budget()
    budget.measured([ram(16, 2)])
    assert budget.missing({"ram": 3}) == {"ram": 1}
    assert budget.fits_empty({"ram": 16}) and not budget.fits_empty({"ram": 17})


def test_budget_cap_and_reserve_bound_the_leases() -> None:
    budget = Budget({"ram": 8}, {"ram": 1})
    budget.measured([ram(16, 16)])
    assert budget.cap("ram") == 7 and budget.available("ram") == 7


def test_budget_own_lease_does_not_count_against_a_larger_one() -> None:
    budget = Budget()
    budget.measured([ram(10, 9)])
    budget.grant("b", {"ram": 2})
    budget.measured([ram(10, 9)], {"b": {"ram": 1}})
    assert budget.missing({"ram": 10}, holder="b") == {}
    assert budget.missing({"ram": 10}) == {"ram": 2}


def test_budget_unknown_device_has_nothing() -> None:
    assert Budget().missing({"cuda7": 1}) == {"cuda7": 1}


def test_budget_residue_stays_counted_until_freed() -> None:
    budget = Budget()
    budget.measured([ram(10, 10)])
    budget.grant("a", {"ram": 6})
    budget.keep_as_residue("a", {"ram": 4})
    budget.measured([ram(10, 6)], {"a": {"ram": 4}})
    assert budget.available("ram") == 6 and budget.leases["a"].residue


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_budget_grants_that_fit_never_exceed_cap_or_free(
    leases: list[tuple[int, int]], total: int, free: int
) -> None:
    free = min(free, total)
    budget = Budget()
    budget.measured([ram(total, free)])
    for i, (size, _) in enumerate(leases):
        if not budget.missing({"ram": size}):
            budget.grant(str(i), {"ram": size})
    assert budget.leased("ram") <= free <= total


def candidate(name: str, size: int, **kw: object) -> Candidate:
    values = {"busy": 0, "last_used": 0.0} | kw
    return Candidate(name, {"ram": size}, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("missing", "candidates", "expected"),
    [
        (5, [candidate("old", 5, last_used=1), candidate("new", 5, last_used=2)], ["old"]),
        (5, [candidate("busy", 5, busy=1), candidate("idle", 5, last_used=9)], ["idle"]),
        (5, [candidate("low", 5, last_used=9), candidate("high", 5, priority=1)], ["low"]),
        (9, [candidate("a", 5, last_used=1), candidate("b", 5, last_used=2)], ["a", "b"]),
        (8, [candidate("small", 2, last_used=1), candidate("big", 8, last_used=2)], ["big"]),
        (5, [candidate("going", 5, pending=True, busy=3), candidate("idle", 5)], ["going"]),
        (50, [candidate("a", 5)], None),
        (0, [candidate("a", 5)], []),
    ],
)
def test_eviction_takes_the_cheapest_that_suffice(
    missing: int, candidates: list[Candidate], expected: list[str] | None
) -> None:
    victims = pick_victims({"ram": missing}, candidates)
    assert (None if victims is None else [v.worker for v in victims]) == expected


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.booleans()), max_size=8),
)
def test_eviction_always_covers_what_is_missing_and_spares_the_superfluous(
    missing: int, sizes: list[tuple[int, int, bool]]
) -> None:
    candidates = [
        candidate(str(i), s, busy=b, pending=p, last_used=float(i))
        for i, (s, b, p) in enumerate(sizes)
    ]
    victims = pick_victims({"ram": missing}, candidates)
    total = sum(s for s, _, _ in sizes)
    if victims is None:
        assert total < missing
        return
    freed = sum(v.bytes["ram"] for v in victims)
    assert freed >= missing
    for v in victims:
        assert v.pending or freed - v.bytes["ram"] < missing
