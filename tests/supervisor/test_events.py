"""Events reach the log and subscribers, and never block or break who tells them."""

from __future__ import annotations

import io
import json

from uml.supervisor.events import Events


def test_event_is_a_line_of_name_and_fields() -> None:
    out = io.StringIO()
    Events(out).emit("worker.ready", model="a", load_s=0.312, note="two words")
    assert (
        out.getvalue()
        .rstrip()
        .endswith('info    worker.ready model=a load_s=0.312 note="two words"')
    )


def test_json_lines_can_be_read_back() -> None:
    out = io.StringIO()
    Events(out, format="json").emit("x", "warning", pids=[1])
    event = json.loads(out.getvalue())
    assert (event["event"], event["level"], event["pids"]) == ("x", "warning", [1])


def test_fields_named_like_ours_do_not_collide() -> None:
    out = io.StringIO()
    fields = {"level": "mine", "event": "mine", "name": "mine", "self": 1}
    Events(out, format="json").emit("x", "info", **fields)
    event = json.loads(out.getvalue())
    assert event["level"] == "info" and event["level_"] == "mine" and event["name"] == "mine"


def test_levels_below_the_threshold_are_not_written() -> None:
    out = io.StringIO()
    Events(out).emit("x", "debug")
    assert out.getvalue() == ""


async def test_slow_subscriber_loses_the_oldest_and_is_told() -> None:
    events = Events(None)
    with events.subscribe(size=2) as queue:
        for number in range(4):
            events.emit("x", number=number)
        got = [queue.get_nowait() for _ in range(2)]
        assert [e["number"] for e in got] == [2, 3]
        assert sum(e.get("missed", 0) for e in got) == 2
    events.emit("x")
    assert queue.empty()


def test_closed_stream_takes_nobody_down() -> None:
    out = io.StringIO()
    events = Events(out)
    out.close()
    events.emit("x")


async def test_slow_subscriber_costs_the_others_nothing() -> None:
    events = Events(None)
    with events.subscribe(size=1) as slow, events.subscribe(size=9) as quick:
        for number in range(3):
            events.emit("x", number=number)
        assert slow.get_nowait()["missed"] == 2
        assert [quick.get_nowait().get("missed") for _ in range(3)] == [None] * 3


def test_recent_events_are_those_that_were_logged() -> None:
    events = Events(None)
    for level in ("debug", "info", "error"):
        events.emit("x", level)
    assert [e["level"] for e in events.recent] == ["info", "error"]
    assert events.counts["x", "debug"] == 1
