"""A worker process by itself: hello, load, serve, and ending when it should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest

from tests.workers.workshop import ENTRY, FAKE, worker
from uml.protocol import WIRE_VERSION, messages
from uml.protocol.errors import from_wire


def test_worker_says_hello_loads_and_answers() -> None:
    with worker() as w:
        hello = w.next(messages.Hello)
        assert hello.backend == "fake" and hello.protocol == list(WIRE_VERSION)
        w.send(messages.Load("tiny", []))
        assert w.next(messages.Progress).stage == "weights"
        assert w.next(messages.Ready).slots == 4
        w.ask("r1", "who", 3)
        text, end = w.answer("r1")
        assert text == "tiny tok1 tok2 "
        assert isinstance(end, messages.Done) and end.usage["completion_tokens"] == 3


def test_all_sequences_of_a_step_share_one_frame() -> None:
    with worker() as w:
        w.load(token_delay=0.05)
        for i in range(4):
            w.ask(f"r{i}", "x", 20)
        together = max(len({r for r, _, _ in w.next(messages.Chunks).items}) for _ in range(10))
        assert together == 4


def test_request_before_a_load_is_refused() -> None:
    with worker() as w:
        w.next(messages.Hello)
        w.ask("r1", "hi")
        _, end = w.answer("r1")
        assert isinstance(end, messages.Error) and "no model" in end.error["message"]


@pytest.mark.parametrize(
    ("task", "params", "code"),
    [
        ("fly", {}, "protocol_error"),
        ("rerank", {}, "task_not_supported"),
        ("chat", {"messages": [{"role": "user", "content": "fail"}]}, "invalid_request"),
        ("chat", {"messages": 5}, "invalid_request"),
    ],
)
def test_bad_request_is_answered_and_the_worker_lives(
    task: str, params: dict[str, object], code: str
) -> None:
    with worker() as w:
        w.load()
        w.send(messages.Request("bad", task, params))
        _, end = w.answer("bad")
        assert isinstance(end, messages.Error) and from_wire(end.error).code == code
        w.ask("good", "say=fine", 1)
        assert w.answer("good")[0] == "fine "


def test_cancel_ends_a_request_and_is_confirmed() -> None:
    with worker() as w:
        w.load(token_delay=0.01)
        w.ask("r1", "x", 100_000)
        w.next(messages.Chunks)
        w.send(messages.Cancel("r1"))
        _, end = w.answer("r1", seconds=2)
        assert isinstance(end, messages.Done) and end.finish == ["cancelled"]


def test_credit_pauses_only_the_request_without_it() -> None:
    with worker() as w:
        w.load()
        w.ask("slow", "flood=100", window=10_000)
        got = 0
        while got < 10:
            got += len(w.next(messages.Chunks).items)
        w.ask("quick", "say=hi", 30)
        text, _ = w.answer("quick")
        assert text.startswith("hi")
        w.send(messages.Credit("slow", 1 << 20))
        while got < 100:
            got += sum(r == "slow" for r, _, _ in w.next(messages.Chunks).items)
        assert w.next(messages.Done).id == "slow"


def test_large_request_comes_in_parts() -> None:
    with worker() as w:
        w.load()
        text = "say=whole " + "x" * 2_000_000
        params = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        packed = msgpack.packb(params)
        w.send(messages.Request("r1", "chat", parts=True))
        for at in range(0, len(packed), 200_000):
            last = at + 200_000 >= len(packed)
            w.send(messages.Part("r1", packed[at : at + 200_000], last))
        assert w.answer("r1")[0] == "whole "


def test_parts_that_are_garbage_are_refused() -> None:
    with worker() as w:
        w.load()
        w.send(messages.Request("r1", "chat", parts=True), messages.Part("r1", b"\xc1", True))
        _, end = w.answer("r1")
        assert isinstance(end, messages.Error) and end.error["status"] == 400


def test_cancel_while_the_parts_arrive_is_confirmed() -> None:
    with worker() as w:
        w.load()
        w.send(messages.Request("r1", "chat", parts=True), messages.Part("r1", b"\x80"))
        w.send(messages.Cancel("r1"), messages.Part("r1", b"\x80", True))
        _, end = w.answer("r1")
        assert isinstance(end, messages.Done) and end.finish == ["cancelled"]
        w.ask("r2", "say=on", 1)
        assert w.answer("r2")[0] == "on "


def test_stray_output_goes_to_stderr_and_not_on_the_wire() -> None:
    with worker() as w:
        w.load(print_to_stdout=True)
        w.ask("r1", "print_to_stdout say=fine", 1)
        assert w.answer("r1")[0] == "fine "
        w.process.kill()
        _, err = w.process.communicate()
        assert err.count(b"stray output") >= 2


def test_failed_load_says_why_and_ends_with_exit_code_1() -> None:
    with worker() as w:
        w.next(messages.Hello)
        w.send(messages.Load("m", [], {"fail_load": "no such tensor"}))
        error = w.next(messages.Error)
        assert error.id is None and error.error["message"] == "no such tensor"
        assert w.process.wait(5) == 1


def test_backend_that_does_not_import_says_so() -> None:
    with worker("uml.workers.backends.fake:Nothing") as w:
        assert w.process.wait(5) == 1
        assert w.process.stderr and b"Nothing" in w.process.stderr.read()


def test_plugin_worker_is_started_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.py"
    file.write_text(
        "from uml.protocol import messages\n"
        "from uml.workers.base import Backend\n"
        "class Echo(Backend):\n"
        "    name = 'echo'\n"
        "    def load(self, load, progress): return messages.Ready(slots=2)\n"
        "    def chat(self, job):\n"
        "        for word in job.task.messages[0]['content'].split(): yield word + ' '\n"
    )
    with worker(f"{file}:Echo") as w:
        w.load()
        w.ask("r1", "one two three")
        assert w.answer("r1")[0] == "one two three "
        w.send(messages.Request("r2", "embed", {}))
        _, end = w.answer("r2")
        assert isinstance(end, messages.Error) and end.error["code"] == "task_not_supported"


def test_beats_come_and_count_progress() -> None:
    with worker() as w:
        w.load(token_delay=0.01)
        first = w.next(messages.Beat)
        w.ask("r1", "x", 100_000)
        w.next(messages.Chunks)
        beat = w.next(messages.Beat)
        assert beat.busy == 1 and beat.progress > first.progress


def test_hang_keeps_beating_without_progress() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "hang")
        beats = [w.next(messages.Beat) for _ in range(3)][1:]
        assert [b.busy for b in beats] == [1, 1] and beats[0].progress == beats[1].progress


def test_worker_ends_when_its_pipe_closes() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "hang")
        assert w.process.stdin
        w.process.stdin.close()
        assert w.process.wait(2) == 0
        w.process.stdin = None  # communicate() must not flush it again


def test_garbage_on_the_wire_ends_the_worker_with_a_reason() -> None:
    with worker() as w:
        w.load()
        assert w.process.stdin
        w.process.stdin.write(b"\xff" * 64)
        w.process.stdin.flush()
        assert w.process.wait(5) == 2
        assert w.process.stderr and b"broke the protocol" in w.process.stderr.read()


def test_worker_dies_with_its_parent_by_the_signal_alone() -> None:
    """It holds the other end of its stdin itself, so the pipe never closes."""
    code = (
        "import os, subprocess, sys, time\n"
        "r, w = os.pipe()\n"
        f"argv = [sys.executable, '-I', '-u', {str(ENTRY)!r}, {FAKE!r}]\n"
        "p = subprocess.Popen(argv, stdin=r, stdout=subprocess.PIPE, pass_fds=[w])\n"
        "p.stdout.read(4)\n"  # its hello: the signal has been asked for
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    end = time.monotonic() + 2
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.01)
    with open(f"/proc/{pid}/stat") if os.path.exists(f"/proc/{pid}") else open(os.devnull) as f:
        assert " Z " in (f.read() or " Z ")
