"""A worker process by itself: hello, load, serve, and ending when it should."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from tests.workers.workshop import ENTRY, FAKE, gone, wait_until, worker
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


@pytest.mark.parametrize("doing", ["nothing", "hold_gil"])
def test_worker_dies_with_its_parent_by_the_signal_alone(doing: str) -> None:
    """Its stdin never closes, for it holds the other end itself; and while C code holds the
    interpreter's lock it could not notice that anyway."""
    load, ask = (
        messages.pack(messages.Load("m", [])),
        messages.Request("r1", "complete", {"prompt": doing}),
    )
    code = (
        "import os, subprocess, sys, time\n"
        "r, w = os.pipe()\n"
        f"argv = [sys.executable, '-I', '-u', {str(ENTRY)!r}, {FAKE!r}]\n"
        "p = subprocess.Popen(argv, stdin=r, stdout=subprocess.PIPE, pass_fds=[w])\n"
        f"os.write(w, {load!r})\n"
        "seen = b''\n"
        "while b'ready' not in seen: seen += os.read(p.stdout.fileno(), 65536)\n"
        f"os.write(w, {messages.pack(ask)!r} if {doing!r} != 'nothing' else b'')\n"
        "print(p.pid, flush=True)\n"
        "while True: os.read(p.stdout.fileno(), 65536); print('beat', flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if doing == "hold_gil":
            while select.select([parent.stdout], [], [], 1.5)[0]:  # until the beats stop
                os.read(parent.stdout.fileno(), 65536)
        assert not gone(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_until(lambda: gone(pid))


def test_worker_in_a_namespace_leaves_its_end_to_the_launcher() -> None:
    """Where UML_PARENT_PID is set, its parent is not the supervisor: it survives that one."""
    read, write = os.pipe()
    code = (
        "import subprocess, sys\n"
        f"argv = [sys.executable, '-I', '-u', {str(ENTRY)!r}, {FAKE!r}]\n"
        f"p = subprocess.Popen(argv, stdin=0, stdout={write})\n"
        "print(p.pid, flush=True); p.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[write],
        env=os.environ | {"UML_PARENT_PID": str(os.getpid())},
    )
    os.close(write)
    assert parent.stdout and parent.stdin
    pid = int(parent.stdout.readline())
    try:
        assert os.read(read, 65536)  # its hello
        parent.kill()
        parent.wait(5)
        # The first read may give what was in the pipe before, the others cannot.
        assert all(os.read(read, 65536) for _ in range(3))
        parent.stdin.close()
        wait_until(lambda: gone(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()
        os.close(read)


def test_worker_is_what_the_kernel_ends_first() -> None:
    with worker() as w:
        w.next(messages.Hello)
        assert Path(f"/proc/{w.process.pid}/oom_score_adj").read_text().strip() == "500"


def test_second_load_breaks_the_protocol() -> None:
    with worker() as w:
        w.load()
        w.send(messages.Load("other", []))
        assert w.process.wait(5) == 2
        assert w.process.stderr and b"a second load" in w.process.stderr.read()


def test_message_for_the_supervisor_breaks_the_protocol() -> None:
    with worker() as w:
        w.load()
        w.send(messages.Progress("weights"))
        assert w.process.wait(5) == 2
        assert w.process.stderr and b"not for a worker" in w.process.stderr.read()


def test_request_id_in_use_is_refused_and_the_first_goes_on() -> None:
    with worker() as w:
        w.load(token_delay=0.01)
        w.ask("r1", "x", 100_000)
        w.ask("r1", "x", 1)
        assert "runs already" in w.next(messages.Error).error["message"]
        w.next(messages.Chunks)
        w.send(messages.Cancel("r1"))
        assert w.next(messages.Done).finish == ["cancelled"]


def test_parts_beyond_the_limit_are_refused_and_the_worker_lives() -> None:
    piece = bytes(4_000_000)
    with worker() as w:
        w.load()
        w.send(messages.Request("r1", "chat", parts=True))
        for _ in range(18):
            w.send(messages.Part("r1", piece))
        w.send(messages.Part("r1", b"", last=True))
        _, end = w.answer("r1")
        assert isinstance(end, messages.Error) and end.error["status"] == 413
        w.ask("r2", "say=on", 1)
        assert w.answer("r2")[0] == "on "


PLUGIN = """
from uml.protocol import messages
from uml.workers.base import Backend

class Odd(Backend):
    name = "odd"
    def load(self, load, progress):
        facts = {"x": object()} if load.options.get("odd_facts") else {}
        return messages.Ready(slots=2, facts=facts)
    def can(self, task):
        if task.name == "rerank":
            raise RuntimeError("cannot even say")
        return super().can(task)
    def cancel(self, job):
        raise RuntimeError("cancel is broken")
    def chat(self, job):
        self.log("info", "asked", odd=object())
        yield str(self.slots)
        job.wait_for_room()
        while not job.cancelled:
            yield "x"

class Broken(Backend):
    def __init__(self, outbox, log):
        raise OSError("no such library")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "worker.py"
    file.write_text(PLUGIN)
    return str(file)


@pytest.mark.parametrize(
    ("cls", "says"), [("Broken", "OSError: no such library"), ("Missing", "Missing")]
)
def test_backend_that_does_not_import_is_an_error_frame(plugin: str, cls: str, says: str) -> None:
    with worker(f"{plugin}:{cls}") as w:
        error = w.next(messages.Error)
        assert error.id is None and error.error["code"] == "load_failed"
        assert says in error.error["message"]
        assert w.process.wait(5) == 1


def test_facts_that_cannot_be_sent_fail_the_load(plugin: str) -> None:
    with worker(f"{plugin}:Odd") as w:
        w.next(messages.Hello)
        w.send(messages.Load("m", [], {"odd_facts": True}))
        assert w.next(messages.Error).error["code"] == "load_failed"
        assert w.process.wait(5) == 1


def test_backend_learns_its_slots_and_odd_log_fields_harm_nobody(plugin: str) -> None:
    with worker(f"{plugin}:Odd") as w:
        w.load()
        w.ask("r1", "", window=1)
        assert "object object" in w.next(messages.Log).fields["odd"]
        assert w.next(messages.Chunks).items == [["r1", 0, "2"]]


def test_backend_that_fails_on_a_request_is_answered_for(plugin: str) -> None:
    with worker(f"{plugin}:Odd") as w:
        w.load()
        w.send(messages.Request("r1", "rerank", {}))
        assert "cannot even say" in w.next(messages.Error).error["message"]
        assert w.process.poll() is None


def test_reader_that_fails_ends_the_worker_instead_of_leaving_it_deaf(plugin: str) -> None:
    with worker(f"{plugin}:Odd") as w:
        w.load()
        w.ask("r1", "", window=1)
        w.next(messages.Chunks)
        w.send(messages.Cancel("r1"))
        assert w.process.wait(5) == 3
        assert w.process.stderr and b"cancel is broken" in w.process.stderr.read()
