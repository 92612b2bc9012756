from __future__ import annotations

import pytest

from uml.supervisor.cli import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.042, "42 ms"),
        (3.21, "3.2 s"),
        (250, "4m 10s"),
        (240, "4m"),
        (7260, "2h 1m"),
        (200_000, "2 days"),
        (None, "-"),
    ],
)
def test_seconds_read_as_people_say_them(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("left", "text"),
    [(-3, "now"), (20, "in 20 seconds"), (300, "in 5 minutes"), (7200, "in 2h")],
)
def test_until_counts_from_now(left: float, text: str) -> None:
    assert words.until(1000.0 + left, now=1000.0) == text


def test_receipt_tells_model_bytes_time_processes_and_proof() -> None:
    given = {"model": "a", "freed": {"ram": 1 << 30, "cuda:0": 0}, "ms": 12.6, "pids": [1, 2]}
    text = words.receipt(given | {"verified": "yes"})
    assert text.startswith("a: freed 1.0 GiB on ram in 13 ms, 2 processes ended, verified")


def test_receipt_of_memory_still_held_is_not_called_verified() -> None:
    text = words.receipt({"model": "a", "freed": {}, "ms": 1.0, "pids": [], "verified": "no"})
    assert "freed nothing" in text
    assert "NOT verified" in text


def test_plan_names_who_goes_and_how_long_it_takes() -> None:
    found = {
        "model": "b",
        "fits": True,
        "need_bytes": {"ram": 512 << 20},
        "victims": [{"model": "a", "bytes": {"ram": 1 << 30}, "busy": 2}],
        "load_s": 1.5,
        "reason": "",
    }
    head, needs, goes, takes = words.plan("swap to", found)
    assert head == "swap to b: fits after unloading 1 model"
    assert "512.0 MiB on ram" in needs
    assert "a, frees 1.0 GiB on ram, after 2 running answers" in goes
    assert "about 1.5 s" in takes


def test_plan_that_does_not_fit_gives_the_arithmetic() -> None:
    found = {
        "model": "b",
        "fits": False,
        "need_bytes": {"ram": 1},
        "victims": [],
        "reason": "9 > 8",
    }
    lines = words.plan("load", found)
    assert lines[0] == "load b: does not fit"
    assert lines[-1].endswith("9 > 8")


def test_plan_for_a_model_that_is_loaded_says_just_that() -> None:
    found = {"model": "b", "fits": True, "need_bytes": {"ram": 1}, "reason": "b is loaded"}
    assert words.plan("load", found) == ["load b: nothing to do, it is loaded"]
