"""Real processes: spoken to, killed whole, reaped, accounted for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from uml.protocol import frames, messages
from uml.supervisor import machine, tree
from uml.supervisor.ledger import Ledger
from uml.supervisor.release import release
from uml.supervisor.worker import Worker
from uml.supervisor.worker_log import WorkerLog

#: A stand-in for a worker: a few lines of Python that speak frames on fd 0 and 1.
PRELUDE = """
import os, struct, subprocess, sys, time, signal
import msgpack
def say(**m):
    b = msgpack.packb(m)
    data = struct.pack(">I", len(b)) + b
    while data: data = data[os.write(1, data):]
def hear():
    head = b""
    while len(head) < 4:
        piece = os.read(0, 4 - len(head))
        if not piece: sys.exit(0)
        head += piece
    n, = struct.unpack(">I", head); body = b""
    while len(body) < n: body += os.read(0, n - len(body))
    return msgpack.unpackb(body)
"""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.messages: list[messages.Message] = []
        self.chunks: list[Any] = []
        self.exit: str | None = None

    def on_message(self, worker: Worker, message: messages.Message) -> None:
        self.messages.append(message)

    def on_chunks(self, worker: Worker, items: list[Any]) -> None:
        self.chunks.extend(items)

    def on_exit(self, worker: Worker, how: str) -> None:
        assert self.exit is None, "told once"
        self.exit = how


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not come to pass"
        await asyncio.sleep(0.005)
    return value


Start = Callable[..., tuple[Worker, Heard]]


@pytest.fixture(params=["namespace", "plain"])
async def start(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Start]:
    """Starts stand-ins, in a PID namespace and without; kills what a test leaves."""
    tree.become_subreaper()
    if request.param == "plain":
        monkeypatch.setattr(tree, "namespace_prefix", lambda: ())
    elif not tree.namespace_prefix():
        pytest.skip("this kernel refuses PID namespaces; `uml doctor` says so")
    started: list[Worker] = []

    def go(code: str) -> tuple[Worker, Heard]:
        heard = Heard()
        log = WorkerLog(tmp_path / "worker.log")
        worker = Worker("w1", [sys.executable, "-u", "-c", PRELUDE + code], {}, heard, log)
        worker.spawn()
        started.append(worker)
        return worker, heard

    yield go
    for worker in started:
        await worker.kill()


async def test_worker_speaks_and_hears(start: Start) -> None:
    worker, heard = start("m = hear(); say(t='hello', backend=m['model'], pid=os.getpid())\nhear()")
    worker.send(messages.Load("echo", []))
    await until(lambda: heard.messages)
    assert isinstance(heard.messages[0], messages.Hello) and heard.messages[0].backend == "echo"


async def test_control_frames_overtake_bulk_ones(start: Start) -> None:
    worker, heard = start(
        "time.sleep(0.3)\n"
        "order = [hear()['t'] for _ in range(9)]\n"
        "say(t='log', level='info', event='order', fields={'order': order})\nhear()"
    )
    big = messages.pack(messages.Part("r1", b"x" * 1_000_000))
    worker.send_bulk([big] * 8)
    worker.send(messages.Cancel("r2"))
    await until(lambda: heard.messages)
    order = heard.messages[0].fields["order"]  # type: ignore[attr-defined]
    assert order.index("cancel") < 7


async def test_last_words_are_heard_before_the_exit(start: Start) -> None:
    worker, heard = start(
        "sys.stderr.write('first\\nlast words\\n')\n"
        "say(t='error', error={'code': 'load_failed', 'message': 'no'})\nos._exit(3)"
    )
    await until(lambda: heard.exit)
    assert heard.exit == "ended with exit code 3"
    assert [m.t for m in heard.messages] == ["error"]
    assert worker.log.tail(1) == ["last words"]


async def test_kill_signal_is_named(start: Start) -> None:
    worker, heard = start("say(t='beat')\ntime.sleep(60)")
    await until(lambda: heard.messages)
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: heard.exit)
    assert "SIGKILL" in str(heard.exit)


async def test_garbage_on_the_wire_ends_the_connection_and_says_so(start: Start) -> None:
    _, heard = start("os.write(1, b'\\xff' * 64)\ntime.sleep(60)")
    await until(lambda: heard.exit)
    assert "protocol" in str(heard.exit) and str(frames.MAX_FRAME_BYTES) in str(heard.exit)


async def test_kill_ends_children_in_other_sessions_and_groups(
    start: Start, tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    worker, heard = start(
        "a = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "b = subprocess.Popen(['sh', '-c', 'setsid sleep 301 & sleep 302'], process_group=0)\n"
        "time.sleep(0.2); say(t='beat'); time.sleep(300)"
    )
    await until(lambda: heard.messages)
    members = worker.pids()
    note.write_text(str(members))
    assert len(members) >= 5
    report = await worker.kill()
    assert not report.stuck and set(members) <= set(report.pids)
    assert tree.living(members) == []
    assert heard.exit == "was killed" or "SIGKILL" in str(heard.exit)


async def test_kill_finds_orphans_whose_parent_died_before(start: Start) -> None:
    worker, heard = start(
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.setsid()\n"
        "    grandchild = os.fork()\n"
        "    if grandchild: os._exit(0)\n"
        "    os.close(0); os.close(1); time.sleep(300)\n"
        "os.waitpid(pid, 0); say(t='beat'); time.sleep(300)"
    )
    await until(lambda: heard.messages)
    report = await worker.kill()
    assert not report.stuck
    assert [p for p in tree.everywhere(worker.token) if machine.alive(p)] == []


async def test_kill_of_a_stopped_process_works(start: Start) -> None:
    worker, heard = start("say(t='beat')\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(300)")
    await until(lambda: heard.messages)
    os.kill(worker.pid, signal.SIGSTOP)
    report = await worker.kill()
    assert not report.stuck and report.ms < 5000


async def test_release_shows_ram_back_and_writes_a_receipt(start: Start) -> None:
    worker, heard = start("x = bytearray(os.urandom(1) * (200 << 20)); say(t='beat'); hear()")
    await until(lambda: heard.messages)
    receipt = await release(worker, machine.Machine(), model="m", reason="test")
    assert receipt.before["ram"] > 190 << 20
    assert receipt.verified == "yes", receipt
    assert receipt.freed["ram"] > 150 << 20
    assert tree.living(receipt.pids) == []


@pytest.mark.parametrize(
    ("policy", "verified", "at_least_ms"),
    [("now", "yes", 0), ("late:0.3", "yes", 300), ("falling:0.3", "yes", 250), ("never", "no", 0)],
)
async def test_release_waits_for_the_device_and_names_residue(
    start: Start, tmp_path: Path, policy: str, verified: str, at_least_ms: float
) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    device = machine.Machine(f"fake0:{100 << 20}:{folder}")
    worker, heard = start(
        f"p = os.path.join({str(folder)!r}, 'seg.%s.tok.{policy}' % os.readlink('/proc/self'))\n"
        "f = os.open(p, os.O_CREAT | os.O_RDWR); os.posix_fallocate(f, 0, 30 << 20)\n"
        "say(t='beat'); hear()"
    )
    await until(lambda: heard.messages)
    assert device.used_by(worker.pids())["fake0"] == 30 << 20
    receipt = await release(worker, device, model="m", reason="test", deadline_s=1.5)
    assert receipt.verified == verified and receipt.ms >= at_least_ms
    if verified == "yes":
        assert receipt.freed["fake0"] == 30 << 20 and "fake0" not in receipt.after
    else:
        assert receipt.after["fake0"] == 30 << 20


async def test_worker_inherits_no_secret(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UML_API_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    _, heard = start("say(t='log', level='info', event='env', fields=dict(os.environ)); hear()")
    await until(lambda: heard.messages)
    env = heard.messages[0].fields  # type: ignore[attr-defined]
    assert "hush" not in env.values() and env[tree.TOKEN]


async def test_stderr_without_line_ends_does_not_grow_memory(start: Start) -> None:
    worker, heard = start(
        "sys.stderr.write('x' * 3_000_000); sys.stderr.flush(); say(t='beat')\nhear()"
    )
    await until(lambda: heard.messages and worker.log.total >= 3_000_000)
    assert sum(map(len, worker.log.tail(500))) < 20_000


def test_ledger_reaps_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    """A supervisor is SIGKILLed; its worker, outside any namespace, has left its session."""
    code = (
        "import os, sys, time, subprocess, types\n"
        f"u = types.ModuleType('uml'); u.__path__ = [{str(Path(__file__).parents[2])!r}]\n"
        "sys.modules['uml'] = u\n"
        "from pathlib import Path\n"
        "from uml.supervisor import tree\n"
        "from uml.supervisor.ledger import Ledger, Tree\n"
        f"ledger = Ledger(Path({str(tmp_path)!r}))\n"
        "ledger.enter('tok', None)\n"
        "env = dict(os.environ, UML_LAUNCH_TOKEN='tok')\n"
        "p = subprocess.Popen(['sleep', '300'], env=env, start_new_session=True)\n"
        "known = Tree({p.pid: tree.start_time(p.pid)})\n"
        "ledger.enter('tok', known); print(p.pid, flush=True); time.sleep(300)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    orphan = int(owner.stdout.readline())
    try:
        ledger = Ledger(tmp_path)
        assert ledger.reap() == [], "its supervisor lives: hands off"
        assert machine.alive(orphan)
        owner.kill()
        owner.wait()
        (reaped,) = ledger.reap()
        assert orphan in reaped.pids and not reaped.stuck
        assert not machine.alive(orphan) and list(tmp_path.glob("*.json")) == []
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_ledger_spares_a_stranger_that_got_the_same_pid(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        entry = f'{{"supervisor": [999999, 1.0], "members": [[{stranger.pid}, 1.0]]}}'
        (tmp_path / "tok.json").write_text(entry)
        (reaped,) = Ledger(tmp_path).reap()
        assert reaped.pids == ()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
