"""Who leaves when memory is short, and who is told to have leaked: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.machine.machines import machine
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.relief import Growth, Holder, braked, marks, relief

MB = 1 << 20
GB = 1 << 30


def ram(free: int, total: int = 16 * GB) -> DeviceMemory:
    return DeviceMemory("ram", "ram", total, free)


def holder(name: str, megabytes: int, load_s: float | None = 1.0, **extra: bool) -> Holder:
    return Holder(name, {"ram": megabytes * MB}, extra.pop("idle", True), load_s, **extra)


def test_defaults_are_a_share_of_the_device_up_to_a_limit() -> None:
    low, brake = marks(machine("rtx4090"), {}, {})
    assert low["ram"] == 512 * MB and low["cuda0"] == 256 * MB
    assert brake == {"ram": 512 * MB // 3, "cuda0": 0}
    low, brake = marks([ram(0, 4 * GB)], {}, {})
    assert 100 * MB < low["ram"] < 130 * MB and brake["ram"] == low["ram"] // 3
    low, brake = marks([ram(0)], {"ram": 0}, {"ram": 5})
    assert low == {"ram": 0} and brake == {"ram": 5}


def test_nobody_goes_while_enough_is_free() -> None:
    assert relief([ram(400 * MB)], {"ram": 512 * MB}, [holder("a", 900)]) == {}


def test_whose_bytes_come_back_fastest_goes_first_and_no_more_than_needed() -> None:
    slow, fast = holder("slow", 400, 20.0), holder("fast", 300, 0.5)
    assert list(relief([ram(300 * MB)], {"ram": 512 * MB}, [slow, fast])) == ["fast"]
    both = relief([ram(100 * MB)], {"ram": 512 * MB}, [slow, fast])
    assert list(both) == ["fast", "slow"]


def test_bytes_that_are_on_their_way_are_waited_for() -> None:
    going = holder("going", 500, leaving=True)
    assert relief([ram(100 * MB)], {"ram": 512 * MB}, [going, holder("a", 500)]) == {}


def test_busy_ones_stay_until_the_brake() -> None:
    busy = holder("busy", 900, idle=False)
    assert relief([ram(10 * MB)], {"ram": 512 * MB}, [busy]) == {}
    assert braked([ram(200 * MB)], {"ram": 170 * MB}, [busy]) is None
    assert braked([ram(100 * MB)], {"ram": 170 * MB}, [busy]) == ("busy", "ram")
    going = holder("going", 500, leaving=True)
    assert braked([ram(100 * MB)], {"ram": 170 * MB}, [busy, going]) is None, "one at a time"


def test_a_game_on_one_card_sends_away_what_is_on_that_card() -> None:
    devices = [ram(8 * GB), DeviceMemory("cuda0", "cuda", 8 * GB, 50 * MB)]
    here = Holder("here", {"cuda0": 2 * GB, "ram": 100 * MB}, True, 1.0)
    there = Holder("there", {"ram": 4 * GB}, True, 1.0)
    assert relief(devices, marks(devices, {}, {})[0], [there, here]) == {"here": "cuda0"}


@given(
    free=st.integers(0, 2000),
    held=st.lists(st.tuples(st.integers(0, 500), st.booleans(), st.booleans()), max_size=8),
)
def test_whoever_goes_was_idle_and_needed(free: int, held: list[tuple[int, bool, bool]]) -> None:
    holders = [
        holder(f"w{i}", size, 1.0 + i, idle=idle, leaving=leaving)
        for i, (size, idle, leaving) in enumerate(held)
    ]
    going = relief([ram(free * MB)], {"ram": 512 * MB}, holders)
    by_name = {h.worker: h for h in holders}
    assert all(by_name[w].idle and not by_name[w].leaving for w in going)
    coming = sum(h.bytes["ram"] for h in holders if h.leaving)
    freed = [by_name[w].bytes["ram"] for w in going]
    if going:
        assert free * MB + coming + sum(freed[:-1]) < 512 * MB, "the last one was still needed"
    left = [h for h in holders if h.idle and not h.leaving and h.worker not in going]
    if free < 384 and any(h.bytes["ram"] for h in left):
        assert free * MB + coming + sum(freed) >= 512 * MB, "who stays is not needed"


# --- leaks ---------------------------------------------------------------------------------


def grow(sizes: list[int], busy: int = 0) -> Growth:
    growth = Growth()
    for requests, size in enumerate(sizes):
        growth.note(requests, busy, {"ram": size * MB})
    return growth


def test_steady_growth_is_a_leak_and_says_how_much() -> None:
    leak = grow([1000 + 5 * n for n in range(200)]).leak(512 * MB)
    assert leak and leak.device == "ram" and leak.requests == 199
    assert leak.before == 1000 * MB and 1700 * MB < leak.after <= 1995 * MB


def test_a_cache_that_filled_is_no_leak() -> None:
    assert grow([1000 + min(900, 30 * n) for n in range(400)]).leak(512 * MB) is None


def test_one_large_request_is_no_leak() -> None:
    assert grow([1000] * 60 + [1900] * 140).leak(512 * MB) is None


def test_growth_that_is_small_or_young_is_no_leak() -> None:
    assert grow([1000 + n for n in range(400)]).leak(512 * MB) is None
    assert grow([1000 + 100 * n for n in range(10)]).leak(512 * MB) is None


def test_more_load_is_not_more_memory_for_the_same_work() -> None:
    growth = Growth()
    for n in range(200):  # as many requests at once as there are, each with its own memory
        growth.note(n, n // 20, {"ram": (1000 + 100 * (n // 20)) * MB})
    assert growth.leak(512 * MB) is None


@given(st.lists(st.integers(0, 300), min_size=1, max_size=300))
def test_what_wavers_below_the_limit_never_leaks(sizes: list[int]) -> None:
    assert grow(sizes).leak(301 * MB) is None


def test_samples_are_bounded_and_span_the_whole_life() -> None:
    growth = grow(list(range(10_000)))
    (samples,) = growth.samples.values()
    assert len(samples) <= 64 and samples[0][0] == 0 and samples[-1][0] == 9_999
