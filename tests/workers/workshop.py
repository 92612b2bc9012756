"""Starts a real worker process and speaks frames with it, without any of the supervisor."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uml.protocol import frames, messages

ENTRY = Path(__file__).resolve().parents[2] / "workers/__main__.py"
FAKE = "uml.workers.backends.fake:Fake"


class Talk:
    """A worker at the other end of two pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._decoder = frames.Decoder()
        self._waiting: list[messages.Message] = []

    def send(self, *sent: messages.Message) -> None:
        assert self.process.stdin
        for message in sent:
            self.process.stdin.write(messages.pack(message))
        self.process.stdin.flush()

    def next(self, *kinds: type[messages.Message], seconds: float = 10.0) -> Any:
        """The next message of one of `kinds`; beats and others are passed over."""
        end = time.monotonic() + seconds
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if not kinds or isinstance(message, kinds):
                    return message
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"no {[k.__name__ for k in kinds]} came")

    def _read(self, seconds: float) -> bool:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, seconds))
        data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
        self._waiting += [messages.parse(m) for m in self._decoder.feed(data)]
        return bool(data)

    def load(self, **options: Any) -> messages.Ready:
        self.next(messages.Hello)
        self.send(messages.Load("m", [], options))
        ready = self.next(messages.Ready)
        assert isinstance(ready, messages.Ready)
        return ready

    def ask(self, request: str, text: str, max_tokens: int = 4, **kw: Any) -> None:
        params = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
        self.send(messages.Request(request, "chat", params, **kw))

    def answer(self, request: str, seconds: float = 10.0) -> tuple[str, messages.Message]:
        """(text, the end) of a request; others' chunks are lost."""
        text = ""
        while True:
            message = self.next(messages.Chunks, messages.Done, messages.Error, seconds=seconds)
            if isinstance(message, messages.Chunks):
                text += "".join(d for r, _, d in message.items if r == request)
            elif message.id == request:
                return text, message


def wait_until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Poll until `true()`; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The pids whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, rest = stat.read_text(errors="replace").rsplit(")", 1)
        except (OSError, ValueError):  # gone meanwhile
            continue
        if int(rest.split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def gone(pid: int) -> bool:
    """Dead, a zombie included: whoever adopted it may be slow to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1][1] in "ZX"
    except OSError:
        return True


@contextmanager
def worker(backend: str = FAKE, **env: str) -> Iterator[Talk]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-u", str(ENTRY), backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]} | env,
    )
    try:
        yield Talk(process)
    finally:
        process.kill()
        process.communicate()
