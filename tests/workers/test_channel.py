"""The wire is the supervisor's and the host's alone, and never holds up who computes."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import termios
from pathlib import Path

from tests.workers.workshop import Talk, wait_until, worker
from uml.protocol import messages

WIDE = 1 << 30


def in_the_pipe(w: Talk) -> int:
    assert w.process.stdout
    size = array.array("i", [0])
    fcntl.ioctl(w.process.stdout.fileno(), termios.FIONREAD, size)
    return size[0]


def test_full_pipe_does_not_hold_up_the_loop_that_computes() -> None:
    """The last request is taken up, and dies as told, though nobody reads the first one's 4 MB."""
    with worker() as w:
        w.load()
        w.ask("r1", "flood=4000", window=WIDE)
        wait_until(lambda: in_the_pipe(w) > 32 * 1024)
        w.ask("r2", "x", 4000)  # more steps than the pipe has room for
        w.ask("r3", "die_after_n=200", 4000)
        assert w.process.wait(10) == -signal.SIGKILL


def test_slow_reader_gets_every_byte_in_the_end() -> None:
    with worker() as w:
        w.load()
        w.ask("r1", "flood=4000", window=WIDE)
        w.ask("r2", "say=hi", 1)  # answered in between
        text, end = w.answer("r1")
        assert len(text) == 4000 * 1024 and isinstance(end, messages.Done)


def test_worker_keeps_nothing_on_its_standard_descriptors() -> None:
    with worker() as w:
        w.load()
        fds = {n: os.readlink(f"/proc/{w.process.pid}/fd/{n}") for n in (0, 1, 2)}
        assert fds[0] == os.devnull and fds[1] == fds[2]


def test_no_child_inherits_the_wire() -> None:
    """Also not one that a C library forks: else the supervisor would wait for that one's end."""
    with worker() as w:
        w.load()
        folder = Path(f"/proc/{w.process.pid}/fdinfo")
        flags = {int(f.name): int(f.read_text().split()[3], 8) for f in folder.iterdir()}
        assert len(flags) > 4
        assert [fd for fd, set_ in flags.items() if not set_ & os.O_CLOEXEC] == [0, 1, 2]
