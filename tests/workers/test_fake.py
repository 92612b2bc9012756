"""The fake backend does what it is told: the tests of everything else lean on that."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tests.workers.workshop import Talk, children, wait_until, worker
from uml.protocol import messages


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def beats_after(w: Talk, count: int) -> list[messages.Beat]:
    """`count` beats that were made after those now in the pipe: the first may be old."""
    return [w.next(messages.Beat) for _ in range(count + 1)][1:]


def test_slow_load_reports_growing_fractions_and_beats_count_them() -> None:
    with worker() as w:
        w.next(messages.Hello)
        w.send(messages.Load("m", [], {"slow_load": 0.7}))
        seen: list[Any] = [w.next(messages.Progress, messages.Beat, messages.Ready)]
        while not isinstance(seen[-1], messages.Ready):
            seen.append(w.next(messages.Progress, messages.Beat, messages.Ready))
        fractions = [m.fraction for m in seen if isinstance(m, messages.Progress)]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 10
        beats = [m.progress for m in seen if isinstance(m, messages.Beat)]
        assert len(beats) >= 2 and beats[-1] > beats[0]


def test_stalled_load_beats_without_progress() -> None:
    with worker() as w:
        w.next(messages.Hello)
        w.send(messages.Load("m", [], {"stall_load": 60}))
        w.next(messages.Progress)
        first, second = beats_after(w, 2)
        assert first.progress == second.progress


def test_crash_on_load_is_a_kill() -> None:
    with worker() as w:
        w.next(messages.Hello)
        w.send(messages.Load("m", [], {"crash_on_load": True}))
        assert w.process.wait(5) == -signal.SIGKILL


def test_hello_waits_when_told_to() -> None:
    with worker(UML_FAKE_HELLO="0.5") as w:
        started = time.monotonic()
        w.next(messages.Hello)
        assert time.monotonic() - started >= 0.5


def test_memory_is_really_touched() -> None:
    with worker() as w:
        w.load(ram_bytes=40_000_000)
        assert anonymous_bytes(w.process.pid) >= 40_000_000
        w.ask("r1", "eat_memory=30000000", 1)
        w.answer("r1")
        assert anonymous_bytes(w.process.pid) >= 70_000_000


def test_overshoot_takes_more_than_the_lease_while_it_loads() -> None:
    with worker() as w:
        w.next(messages.Hello)
        options = {"overshoot": 10_000_000}
        w.send(messages.Load("m", [], options, lease={"ram": 30_000_000}))
        wait_until(lambda: anonymous_bytes(w.process.pid) >= 40_000_000)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, "now"),
        ({"late_release": 0.5}, "late:0.5"),
        ({"falling_release": 2}, "falling:2"),
        ({"never_release": True}, "never"),
    ],
)
def test_device_memory_is_a_segment_that_outlives_the_process(
    tmp_path: Path, options: dict[str, Any], policy: str
) -> None:
    with worker(UML_LAUNCH_TOKEN="t0k") as w:
        w.load(fake_bytes=1_000_000, fake_dir=str(tmp_path), **options)
        pid = w.process.pid
        w.process.kill()
        w.process.wait(5)
    (segment,) = tmp_path.iterdir()
    assert segment.name == f"seg.{pid}.t0k.{policy}"
    # Really held, not only named: a file of holes would cost a quota nothing.
    assert segment.stat().st_size == 1_000_000 <= segment.stat().st_blocks * 512


@pytest.mark.parametrize("how", ["group", "setsid"])
def test_child_leaves_the_group_or_the_session(how: str) -> None:
    with worker() as w:
        w.load(spawn_child=how)
        (child,) = children(w.process.pid)
        try:
            assert os.getpgid(child) == child
            assert (os.getsid(child) == child) == (how == "setsid")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_dies_after_as_many_tokens_as_told() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "die_after_n=3", 50)
        text = ""
        with pytest.raises(AssertionError, match="came"):
            while True:
                text += "".join(d for _, _, d in w.next(messages.Chunks, seconds=5).items)
        assert text == "tok0 tok1 tok2 "
        assert w.process.wait(5) == -signal.SIGKILL


def test_ignored_cancel_goes_on_answering() -> None:
    with worker() as w:
        w.load(token_delay=0.001)
        w.ask("r1", "ignore_cancel", 2)
        w.send(messages.Cancel("r1"))
        w.ask("r2", "say=after", 1)  # answered after the cancel was read
        ends = w.next(messages.Done)
        assert ends.id == "r2"
        w.next(messages.Chunks)
        w.ask("r3", "say=again", 1)
        assert w.next(messages.Done).id == "r3"


def test_slow_request_is_slow_alone() -> None:
    with worker() as w:
        w.load()
        w.ask("slow", "slow=30", 5)
        w.ask("quick", "x", 5)
        assert w.answer("quick")[0].count("tok") == 5


def test_requests_that_came_at_different_times_step_together() -> None:
    with worker() as w:
        w.load(token_delay=0.1)
        for n in range(4):
            w.ask(f"r{n}", "x", 10_000)
            while all(r != f"r{n}" for r, _, _ in w.next(messages.Chunks).items):
                pass
        together = [{r for r, _, _ in w.next(messages.Chunks).items} for _ in range(5)]
        assert max(map(len, together)) == 4


def test_holding_the_lock_stops_the_beats() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "hold_gil")
        for _ in range(10):  # what was in the pipe before
            try:
                w.next(messages.Beat, seconds=1.5)
            except AssertionError:
                break
        else:
            pytest.fail("the beats go on")
        assert w.process.poll() is None


def test_embeddings_are_the_same_each_time_and_of_length_1() -> None:
    with worker() as w:
        w.load()
        vectors: list[list[bytes]] = []
        for request in ("r1", "r2"):
            w.send(messages.Request(request, "embed", {"inputs": ["one", "two"]}))
            items = w.next(messages.Chunks).items
            assert [index for _, index, _ in items] == [0, 1]
            vectors.append([delta["vector"] for _, _, delta in items])
        assert vectors[0] == vectors[1] and vectors[0][0] != vectors[0][1]
        values = struct.unpack("<8f", vectors[0][0])
        assert sum(v * v for v in values) == pytest.approx(1, abs=1e-5)


def test_more_embeddings_than_a_frame_holds_all_arrive() -> None:
    count = 90_000
    with worker() as w:
        w.load()
        w.send(messages.Request("r1", "embed", {"inputs": ["x"] * count}))
        seen = 0
        while not isinstance(message := w.next(messages.Chunks, messages.Done), messages.Done):
            assert message.items[0][1] == seen
            seen += len(message.items)
        assert seen == count


def test_completion_counts_its_tokens() -> None:
    with worker() as w:
        w.load()
        w.send(messages.Request("r1", "complete", {"prompt": "one two", "max_tokens": 3}))
        text, end = w.answer("r1")
        assert text == "tok0 tok1 tok2 " and isinstance(end, messages.Done)
        assert (end.usage["prompt_tokens"], end.usage["completion_tokens"]) == (2, 3)
        assert end.finish == ["length"]


def test_flood_stops_where_its_window_ends() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "flood=100", window=10_000)
        w.ask("r2", "x", 50)  # takes more steps than the window has room for
        flooded = 0
        while not isinstance(message := w.next(messages.Chunks, messages.Done), messages.Done):
            flooded += sum(request == "r1" for request, _, _ in message.items)
        assert message.id == "r2" and flooded == 10
