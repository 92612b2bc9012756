"""Guessed tokens: where they come from, and when they pay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.workers.backends.llama_cpp.gain import MOST, Choice, Gain, Offer, Times
from uml.workers.backends.llama_cpp.lookup import Lookup


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
        gain.times.observe(int(rows[1:]), value)
    return gain


def repeated(*hits: float) -> list[Offer]:
    return [Offer(hits)]


def drafted(hits: float, each_s: float, once_s: float = 0.0) -> list[Offer]:
    return [Offer([]), Offer([hits], each_s, once_s, known=False)]


def test_where_rows_are_cheap_good_guesses_are_made() -> None:
    gpu = timed(r1=0.010, r12=0.011)
    assert gpu.choose(1, repeated(0.9), 15) == Choice(0, MOST)
    assert gpu.choose(1, repeated(0.02), 15) is None


def test_where_each_row_costs_as_much_as_a_step_nothing_is_guessed() -> None:
    small = timed(r1=0.010, r4=0.04, r8=0.08, r12=0.12)
    assert small.choose(1, repeated(0.99), 15) is None


def test_no_more_rows_are_added_than_there_is_room_for() -> None:
    gpu = timed(r1=0.010, r2=0.010, r12=0.011)
    assert gpu.choose(1, repeated(0.95), 3) == Choice(0, 3)
    assert gpu.choose(1, repeated(0.95), 2) is None
    assert gpu.choose(2, repeated(0.95, 0.95), 5) is None
    assert gpu.choose(2, repeated(0.95, 0.95), 6) == Choice(0, 3)


def test_a_draft_is_used_where_it_and_the_rows_take_less_than_the_tokens_are_worth() -> None:
    gain = timed(r1=0.010, r4=0.011, r8=0.012, r12=0.013)
    assert gain.choose(1, drafted(0.8, each_s=0.001), 31) == Choice(1, 7)
    assert gain.choose(1, drafted(0.8, each_s=0.009), 31) is None
    assert gain.choose(1, drafted(0.1, each_s=0.001), 31) is None


def test_of_two_sources_the_better_one_guesses() -> None:
    gain = timed(r1=0.010, r4=0.011, r8=0.012, r12=0.013)
    both = [Offer([0.9]), Offer([0.9], 0.002, known=False)]
    assert gain.choose(1, both, 31) == Choice(0, MOST)  # the same guess for nothing
    poor = [Offer([0.2]), Offer([0.9], 0.002, known=False)]
    assert gain.choose(1, poor, 31) == Choice(1, 7)


def test_a_long_text_is_not_read_by_the_draft_for_a_few_tokens() -> None:
    gain = timed(r1=0.010, r4=0.011, r8=0.012, r12=0.013)
    assert gain.choose(1, drafted(0.8, each_s=0.001, once_s=0.1), 31)
    assert gain.choose(1, drafted(0.8, each_s=0.001, once_s=5.0), 31) is None


@pytest.mark.parametrize("offers", [repeated(0.95), drafted(0.7, 0.005), drafted(0.7, 0.02, 0.3)])
@pytest.mark.parametrize("row_s", [0.0005, 0.004, 0.010])
def test_trying_takes_a_small_share_of_the_time(offers: list[Offer], row_s: float) -> None:
    gain, spent, total, trials = Gain(), 0.0, 0.0, 0
    for _ in range(20_000):
        choice, rows, extra = gain.choose(1, offers, 31), 1, 0.0
        if choice:
            rows += choice.size
            if choice.trial:
                offer = offers[choice.offer]
                extra = offer.once_s + offer.each_s * choice.size
                gain.spend(extra)
                spent += extra + 0.010 + row_s * (rows - 1) - 0.010 * choice.trial
                trials += 1
        seconds = 0.010 + row_s * (rows - 1)
        gain.observe(rows, seconds)
        total += seconds + extra
    assert trials >= 2, "what is not known is tried, and tried again"
    assert spent <= 0.021 * total


def test_good_guesses_are_not_waited_for() -> None:
    """Tokens that are nearly sure pay for the steps that find out how many to guess."""
    gain = Gain()
    for step in range(400):
        choice = gain.choose(1, repeated(0.97), 31)
        rows = 1 + (choice.size if choice else 0)
        gain.observe(rows, {1: 0.007, 4: 0.0196, 8: 0.031, 12: 0.040}[rows])
        if choice == Choice(0, MOST):
            assert step < 150
            return
    pytest.fail("never")


def test_what_was_saved_up_is_not_spent_at_once() -> None:
    gain = Gain()
    for _ in range(100_000):
        gain.observe(1, 0.010)
    offers, lost = drafted(0.3, 0.010), 0.0
    for _ in range(200):
        choice = gain.choose(1, offers, 31)
        rows = 1 + (choice.size if choice else 0)
        if choice:
            gain.spend(0.010 * choice.size)
            lost += 0.010 * choice.size + 0.010 * rows - 0.010 * choice.trial
        gain.observe(rows, 0.010 * rows)
    assert lost <= 1.0


def test_what_begins_to_pay_is_found_out() -> None:
    gain, now = Gain(), 0.0
    for step in range(40_000):
        row_s = 0.010 if step < 5_000 else 0.001  # somebody else's work ended
        choice = gain.choose(1, repeated(0.9), 31)
        rows = 1 + (choice.size if choice else 0)
        gain.observe(rows, 0.010 + row_s * (rows - 1))
        now += 0.010 + row_s * (rows - 1)
        if choice and not choice.trial:
            assert step > 5_000
            return
    pytest.fail("never")


@given(st.dictionaries(st.integers(1, 40), st.floats(1e-4, 1.0), min_size=1), st.integers(1, 40))
def test_times_lie_between_those_measured_and_grow_no_more_than_by_the_row(
    measured: dict[int, float], rows: int
) -> None:
    times = Times()
    for count, seconds in measured.items():
        times.observe(count, seconds)
    low, high = min(measured.values()), max(measured.values())
    known = times.seconds(rows)
    assert (known is not None) == (min(measured) <= rows <= max(measured))
    if known is not None:
        assert low * 0.999 <= known <= high * 1.001
        assert times.at_most(rows) == known
    elif rows > max(measured):
        last = max(measured)
        assert times.at_most(rows) == pytest.approx(measured[last] * rows / last)
