"""What of an unfinished recording is heard next, and when its text is final."""

from __future__ import annotations

import math
from array import array
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from uml.supervisor.api.utterances import Utterances

RATE = 8000


def tone(seconds: float, loud: int = 9000) -> bytes:
    count = int(seconds * RATE)
    return array("h", [int(loud * math.sin(i / 3)) for i in range(count)]).tobytes()


def quiet(seconds: float) -> bytes:
    return bytes(2 * int(seconds * RATE))


def seg(text: str, start: float, end: float) -> dict[str, Any]:
    return {"text": text, "start": start, "end": end}


def test_text_is_partial_while_it_grows_and_final_after_a_pause() -> None:
    live = Utterances(RATE)
    assert live.window() is None
    live.feed(tone(1))
    window = live.window()
    assert window and len(window) == 2 * RATE
    (told,) = live.take([seg(" one", 0, 1)])
    assert (told.text, told.final) == ("one", False)
    assert live.window() is None, "nothing new"
    live.feed(tone(0.2))
    assert live.window() is None, "too little that is new"
    live.feed(tone(1) + quiet(1))
    assert live.window()
    (told,) = live.take([seg(" one two", 0, 2.2)])
    assert (told.text, told.final, told.end) == ("one two", True, 2.2)
    assert live.waiting_s == 0
    live.feed(tone(1))
    assert live.window()
    (told,) = live.take([seg(" three", 0.1, 1)])
    assert told.start == 3.2 + 0.1, "times are those of the whole recording"


def test_silence_is_not_heard_and_not_kept() -> None:
    live = Utterances(RATE)
    for _ in range(100):
        live.feed(quiet(1))
        assert live.window() is None
    assert live.waiting_s < 0.5 and live.duration_s == 100
    live.end()
    assert live.window() is None and live.done


def test_speech_without_a_pause_is_final_but_for_its_last_segment() -> None:
    live = Utterances(RATE)
    live.feed(tone(40))
    window = live.window()
    assert window and len(window) == 28 * 2 * RATE
    told = live.take([seg(" a", 0, 10), seg(" b", 10, 20), seg(" c", 20, 28)])
    assert [(t.text, t.final) for t in told] == [("a", True), ("b", True), ("c", False)]
    assert live.waiting_s == 20
    assert live.window()
    live.take([seg(" all", 0, 28)])
    live.end()
    assert live.window()
    assert live.take([seg(" rest", 0, 3)])[-1].final and live.done


def test_end_makes_everything_final() -> None:
    live = Utterances(RATE)
    live.feed(tone(1) + b"\x01")
    live.end()
    assert live.window()
    (told,) = live.take([seg(" x", 0, 1)])
    assert told.final and live.done
    nothing = Utterances(RATE)
    nothing.end()
    assert nothing.window() is None and nothing.done


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 12)), max_size=12), st.booleans())
def test_all_sound_is_heard_in_order_and_it_comes_to_an_end(
    pieces: list[tuple[bool, float]], empty: bool
) -> None:
    live, final = Utterances(1000), 0.0
    total = 0
    for loud, seconds in pieces:
        count = int(seconds * 1000)
        data = (b"\x00\x20" if loud else b"\0\0") * count
        total += count
        live.feed(data)
        final = step(live, final, empty)
    live.end()
    for _ in range(1000):
        if live.done:
            break
        final = step(live, final, empty)
    assert live.done and live.duration_s == total / 1000


def step(live: Utterances, final: float, empty: bool) -> float:
    window = live.window()
    if window is None:
        return final
    assert len(window) <= 28 * 2000
    length = len(window) / 2000
    heard = [] if empty else [seg(" a", 0, length / 2), seg(" b", length / 2, length)]
    for told in live.take(heard):
        if told.final:
            assert told.start >= final - 1e-6
            final = told.end
    return final
