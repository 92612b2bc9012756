from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.stub_server import Stub
from uml.supervisor.cli import failures, main
from uml.supervisor.cli.logs import fresh


@given(steps=st.lists(st.integers(0, 9), max_size=20))
def test_following_prints_every_line_once(steps: list[int]) -> None:
    """While fewer lines come between two looks than a look can hold."""
    window, log = 10, ["line 0"]
    seen = log[-window:]
    shown = list(seen)
    for step in steps:
        log += [f"line {len(log) + n}" for n in range(step)]
        now = log[-window:]
        shown += fresh(seen, now)
        seen = now
    assert shown == log


def test_a_first_look_shorter_than_the_next_repeats_nothing() -> None:
    assert fresh(["c"], ["a", "b", "c", "d"]) == ["d"]
    assert fresh([], ["a"]) == ["a"]
    assert fresh(["a"], []) == []


def test_following_ends_with_the_supervisor(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [b"one\ntwo\n", b"one\ntwo\n", b"one\ntwo\nthree\n"]

    def log(_: object) -> object:
        if answers:
            return answers.pop(0)
        raise ConnectionAbortedError

    monkeypatch.setattr("uml.supervisor.cli.logs._PAUSE_S", 0.0)
    stub.routes["GET /logs"] = log
    assert main(["logs", "-f"]) == failures.UNREACHABLE
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
