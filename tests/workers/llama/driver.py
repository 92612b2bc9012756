"""A real worker process with a real model, driven over its pipes from a test."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uml.plugins.builtin import LLAMA_CPP
from uml.protocol.errors import from_wire
from uml.protocol.frames import Decoder
from uml.protocol.messages import (
    Beat,
    Cancel,
    Chunks,
    Credit,
    Done,
    Error,
    Hello,
    Load,
    Message,
    Prepare,
    Progress,
    Ready,
    Request,
    Threads,
    pack,
    parse,
)
from uml.protocol.tasks import Task
from uml.supervisor.formats.gguf import read_facts

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 100.0


@dataclass
class Answer:
    """What came for one request. deltas: (choice, delta) in order."""

    deltas: list[tuple[int, Any]] = field(default_factory=list)
    done: Done | None = None
    error: dict[str, Any] | None = None
    first_at: float | None = None
    times: list[float] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.done is not None or self.error is not None

    def text(self, index: int = 0) -> str:
        parts = [
            d.get("text", "") if isinstance(d, dict) else d for i, d in self.deltas if i == index
        ]
        return "".join(parts)

    def calls(self, index: int = 0) -> list[tuple[str, str]]:
        return calls([d for i, d in self.deltas if i == index])

    def reasoning(self, index: int = 0) -> str:
        found = [d for i, d in self.deltas if i == index and isinstance(d, dict)]
        return "".join(d.get("reasoning", "") for d in found)

    def logprobs(self, index: int = 0) -> list[dict[str, Any]]:
        found = [d for i, d in self.deltas if i == index and isinstance(d, dict)]
        return [entry for d in found for entry in d.get("logprobs", [])]


def calls(deltas: list[Any]) -> list[tuple[str, str]]:
    """Tool calls put together as a client does it: (name, arguments as they came)."""
    found: dict[int, tuple[str, str]] = {}
    for piece in (p for d in deltas if isinstance(d, dict) for p in d.get("tool_calls", [])):
        function, index = piece["function"], piece["index"]
        if index not in found:
            assert index == len(found), "calls come in order"
            assert piece["id"].startswith("call_")
            assert piece["type"] == "function"
            found[index] = (function["name"], "")
        name, arguments = found[index]
        found[index] = (name, arguments + function["arguments"])
    return list(found.values())


class WorkerProcess:
    """Started and loaded when made. options: `Load.options`, beyond what the supervisor says of
    every model. expected: what it is told to prepare for, one after the other."""

    def __init__(
        self,
        python: str,
        model: Path,
        *,
        threads: int = 1,
        expected: Sequence[Path] = (),
        **options: Any,
    ) -> None:
        if "arch" not in options:
            facts = read_facts(str(model))
            options |= {"arch": facts.arch, "vocab_size": facts.vocab_size}
        self._process = subprocess.Popen(
            [python, "-I", "-u", str(ROOT / "workers" / "__main__.py"), ENTRY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("UML_TEST_VERBOSE") else subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"]} | LLAMA_CPP.environ,
        )
        self._decoder = Decoder()
        self._ids = 0
        self.answers: dict[str, Answer] = {}
        self.beats: list[Beat] = []
        self.progress: list[Progress] = []
        self.hello: Hello | None = None
        self.ready: Ready | None = None
        self.error: dict[str, Any] | None = None
        #: Items per chunks frame.
        self.frames: Counter[int] = Counter()
        for path in expected:
            self._write(Prepare([str(path)]))
        self._write(Load("m", [str(model)], options, threads=threads))
        try:
            self.until(lambda: self.ready is not None)
        except BaseException:
            self.close()
            raise

    def ask(self, task: Task, *, window: int = 1 << 20) -> str:
        """Send a request; its answer collects in `answers[id]`."""
        self._ids += 1
        name = f"r{self._ids}"
        self.answers[name] = Answer()
        self._write(Request(name, task.name, task.to_wire(), window=window))
        return name

    def cancel(self, name: str) -> None:
        self._write(Cancel(name))

    def threads(self, count: int) -> None:
        self._write(Threads(count))

    def cpu(self) -> dict[str, float]:
        """Thread -> seconds it has computed."""
        found = {}
        for stat in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            found[stat.parent.name] = int(fields[11]) / os.sysconf("SC_CLK_TCK")
        return found

    def credit(self, name: str, amount: int) -> None:
        self._write(Credit(name, amount))

    def wait(self, *names: str) -> list[Answer]:
        """Until all of these ended; an error frame is raised."""
        self.until(lambda: all(self.answers[name].ended for name in names))
        for name in names:
            if error := self.answers[name].error:
                raise from_wire(error)
        return [self.answers[name] for name in names]

    def run(self, task: Task) -> Answer:
        return self.wait(self.ask(task))[0]

    def until(self, condition: Any, deadline_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            self._read(deadline)

    def idle(self) -> None:
        """Until a beat says that nothing runs and nothing waits."""
        seen = len(self.beats)
        self.until(
            lambda: any(b.busy == b.queue == 0 for b in self.beats[seen + 1 :]), deadline_s=20
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _write(self, message: Message) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pack(message))
        self._process.stdin.flush()

    def _read(self, deadline: float) -> None:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise TimeoutError("the worker did not answer in time")
        data = os.read(fd, 1 << 20)
        if not data:
            raise EOFError(f"the worker ended with {self._process.wait()}")
        for frame in self._decoder.feed(data):
            self._take(parse(frame))

    def _take(self, message: Message) -> None:
        if isinstance(message, Chunks):
            self.frames[len(message.items)] += 1
            now = time.monotonic()
            for name, index, delta in message.items:
                answer = self.answers[name]
                answer.first_at = answer.first_at or now
                answer.times.append(now)
                answer.deltas.append((index, delta))
        elif isinstance(message, Done):
            self.answers[message.id].done = message
        elif isinstance(message, Error) and message.id:
            self.answers[message.id].error = message.error
        elif isinstance(message, Error):
            raise from_wire(message.error)
        elif isinstance(message, Beat):
            self.beats.append(message)
        elif isinstance(message, Progress):
            self.progress.append(message)
        elif isinstance(message, Hello):
            self.hello = message
        elif isinstance(message, Ready):
            self.ready = message


ENTRY = "uml.workers.backends.llama_cpp:LlamaCpp"

if __name__ == "__main__":
    sys.exit("a module for tests")
