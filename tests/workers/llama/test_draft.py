"""Guessed tokens: where they come from, and when they pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uml.workers.backends.llama_cpp.draft import MOST, Gain, Lookup


def test_what_followed_before_is_guessed_to_follow_again() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 9, 9, 1, 2, 3]
    assert Lookup(tokens).guess() == [4, 5, 6, 9, 9, 1, 2, 3]


def test_the_latest_place_counts() -> None:
    assert Lookup([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).guess()[0] == 8


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_growing_text_is_looked_up_as_if_it_were_new(text: list[int], step: int) -> None:
    tokens: list[int] = []
    grown = Lookup(tokens)
    for start in range(0, len(text), step):
        tokens += text[start : start + step]
        found = grown.guess()
        assert found == Lookup(list(tokens)).guess()
        assert len(found) <= MOST
        for at in range(len(tokens) - 1, 2, -1):  # by the plainest search there is
            if tokens[at - 3 : at] == tokens[-3:]:
                assert found == tokens[at : at + MOST]
                break
        else:
            assert found == []


def test_hits_are_counted_without_guesses_being_used() -> None:
    tokens = [1, 2, 3, 4] * 4
    lookup = Lookup(tokens)
    for token in [1, 2, 3, 4] * 10:
        lookup.guess()
        lookup.judge(token)
        tokens.append(token)
    assert lookup.hits > 0.95
    lookup.guess()
    lookup.judge(99)
    tokens.append(99)
    assert 0.8 < lookup.hits < 0.95
    before = lookup.hits
    for token in range(100, 120):  # nothing to guess from, nothing to be wrong about
        lookup.guess()
        lookup.judge(token)
        tokens.append(token)
    assert lookup.hits == before


def timed(**seconds: float) -> Gain:
    gain = Gain()
    for rows, value in seconds.items():
        gain.observe(int(rows[1:]), value)
    return gain


def test_where_rows_are_cheap_good_guesses_are_made() -> None:
    gpu = timed(r1=0.010, r13=0.011)
    assert gpu.size(1, [0.9], 15) == MOST
    assert gpu.size(1, [0.02], 15) == 0


def test_where_each_row_costs_as_much_as_a_step_nothing_is_guessed() -> None:
    small = timed(r1=0.010, r3=0.03, r5=0.05, r9=0.09, r13=0.13)
    assert small.size(1, [0.99], 15) == 0


def test_what_was_never_timed_is_tried_now_and_then_and_only_with_good_guesses() -> None:
    gain = timed(r1=0.010)
    assert gain.size(1, [0.5], 15) == 0
    tries = [gain.size(1, [0.95], 15) for _ in range(100)]
    assert 0 < sum(map(bool, tries)) <= 8


def test_no_more_rows_are_added_than_there_is_room_for() -> None:
    gpu = timed(r1=0.010, r2=0.010, r13=0.011)
    assert gpu.size(1, [0.95], 3) == 2
    assert gpu.size(1, [0.95], 1) == 0
    assert gpu.size(2, [0.95, 0.95], 3) == 0
