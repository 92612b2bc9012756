"""A backend that misbehaves on command, for tests of everything around it.

It computes nothing, but is shaped like a real batching backend: one loop, all running requests
advance together, one `chunks` frame per step. Options (of the load) and commands (words of the
last message, prompt or text of a request) are listed at `OPTIONS` and `COMMANDS`. What it hears it
weighs: a transcription says how many bytes came and their digest; what it speaks is the words.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from uml.protocol import messages
from uml.protocol.errors import BadRequest, LoadFailed
from uml.protocol.tasks import Chat, Complete, Embed, Generate, Speak, Task, Transcribe
from uml.workers.base import Backend, Delta, Job, Progress

OPTIONS = {
    "hello_delay": "seconds before the library counts as imported (environment UML_FAKE_HELLO)",
    "fail_load": "the load fails with this text",
    "most_context": "the load runs out of memory with an n_ctx above this",
    "slow_load": "the load takes these seconds and reports progress",
    "stall_load": "the load stands still for these seconds",
    "crash_on_load": "the process is killed while it loads",
    "ram_bytes": "RAM that is really touched",
    "overshoot": "bytes of RAM touched beyond what was granted",
    "fake_bytes": "bytes held on the fake device, in a segment under fake_dir; without, on the "
    "first CUDA device it sees",
    "late_release": "the segment goes these seconds after the process",
    "falling_release": "the segment shrinks over these seconds",
    "never_release": "the segment stays",
    "spawn_child": '"group" or "setsid": a child that left the group or the session',
    "engine": "bytes held by a child shaped like vLLM's engine: a session, a name and an empty "
    "environment of its own, a child of its own, deaf to SIGTERM, shared memory in /dev/shm",
    "print_to_stdout": "prints to fd 1 while it loads",
    "slots": "requests at once (4)",
    "token_delay": "seconds per step (0)",
}
COMMANDS = {
    "who": "says the model's name",
    "threads": "says how many cores it has",
    "say=WORD": "says this",
    "slow=S": "seconds per token of this request",
    "fail": "fails with an error",
    "hang": "never answers; the beats go on",
    "hold_gil": "holds the interpreter's lock: the beats stop",
    "die_after_n=N": "the process is killed after N tokens",
    "flood=N": "N chunks of 1 KB, as fast as the credit allows",
    "print_to_stdout": "prints to fd 1",
    "ignore_cancel": "goes on for ever, cancelled or not",
    "eat_memory=N": "touches N bytes of RAM",
    "spawn_child": "starts a child in a session of its own",
}


@dataclass
class _Running:
    job: Job
    left: int
    words: dict[str, str]
    pause: float
    spoken: int = 0
    due: float = 0.0
    script: list[str] = field(default_factory=list)


class Fake(Backend):
    name: ClassVar[str] = "fake"

    def versions(self) -> dict[str, str]:
        time.sleep(float(os.environ.get("UML_FAKE_HELLO", "0")))
        return {"fake": "1"}

    def load(self, load: messages.Load, progress: Progress) -> messages.Ready:
        options = load.options
        self._model, self._pause = load.model, float(options.get("token_delay", 0))
        self._running_jobs: list[_Running] = []
        self._new = threading.Condition()
        self._eaten: list[bytearray] = []
        self._steps = 0
        progress("weights", 0.0)
        if options.get("print_to_stdout"):
            os.write(1, b"stray output of a C library\n" * 50)
        if options.get("crash_on_load"):
            print("about to crash", file=sys.stderr, flush=True)
            die()
        time.sleep(float(options.get("stall_load", 0)))
        slow = float(options.get("slow_load", 0))
        for step in range(1, 21) if slow else ():
            time.sleep(slow / 20)
            progress("weights", step / 20)
        if "fail_load" in options:
            raise LoadFailed(str(options["fail_load"]))
        if int(options.get("n_ctx", 0)) > int(options.get("most_context", 1 << 30)):
            raise LoadFailed("out of memory: the context does not fit")
        self._touch(int(options.get("ram_bytes", 0)))
        if options.get("overshoot"):
            self._touch(load.lease.get("ram", 0) + int(options["overshoot"]))
            time.sleep(5)  # long enough to be noticed
        memory: dict[str, int] = {}
        if options.get("fake_bytes") and "fake_dir" in options:
            self._take_device(options)
        elif options.get("fake_bytes"):  # a real one
            from uml.workers.backends.cuda_memory import take

            take(int(options["fake_bytes"]))
            memory[str(options["device"])] = int(options["fake_bytes"])
        if options.get("spawn_child"):
            spawn_child(str(options["spawn_child"]))
        if options.get("engine"):
            start_engine(int(options["engine"]), options.get("fake_dir"))
        slots = int(options.get("slots", 4))
        threading.Thread(target=self._loop, name="loop", daemon=True).start()
        facts = {"n_ctx": int(options.get("n_ctx", 4096)), "slots": slots, "arch": "fake"}
        return messages.Ready(slots=slots, facts=facts, memory=memory)

    def can(self, task: Task) -> bool:
        return task.name in ("chat", "complete", "embed", "speak", "transcribe")

    def submit(self, job: Job) -> None:
        if isinstance(job.task, Embed):
            self._embed(job)
            return
        if not isinstance(job.task, (Generate, Speak, Transcribe)):
            raise BadRequest(f"the fake backend cannot {job.task.name}")
        words = dict(w.partition("=")[::2] for w in _text(job.task).split())
        if "fail" in words:
            raise BadRequest("failed on command")
        if "print_to_stdout" in words:
            os.write(1, b"stray output\n")
        if "spawn_child" in words:
            spawn_child("setsid")
        self._touch(int(words.get("eat_memory", 0)))
        running = _Running(job, getattr(job.task, "max_tokens", 1) or 16, words, self._pause)
        if "slow" in words:
            running.pause = float(words["slow"])
        if "flood" in words:
            running.left = int(words["flood"])
        running.script = [self._model] if "who" in words else []
        running.script += [words["say"]] if "say" in words else []
        running.script += [f"threads:{self.threads}"] if "threads" in words else []
        if isinstance(job.task, Transcribe):
            heard = job.task.audio.read()
            digest = hashlib.sha256(heard).hexdigest()[:16]
            running.script += ["heard", str(len(heard)), digest]
            running.left = max(running.left, len(running.script))
        elif isinstance(job.task, Speak):
            running.script += job.task.text.split()
            running.left = max(1, len(running.script))
        with self._new:
            self._running_jobs.append(running)
            self._new.notify()

    def cancel(self, job: Job) -> None:
        with self._new:
            self._new.notify()

    def stats(self) -> tuple[int, int, int]:
        if not hasattr(self, "_steps"):
            return 0, 0, 0
        return len(self._running_jobs), 0, self._steps

    def _loop(self) -> None:
        while True:
            with self._new:
                while not self._running_jobs:
                    self._new.wait()
                batch = list(self._running_jobs)
            now, soonest = time.monotonic(), 1.0
            moved = False
            for running in batch:
                if running.due <= now:
                    moved = self._step(running, now) or moved
                soonest = min(soonest, running.due - now)
            self.outbox.flush()
            with self._new:
                self._running_jobs = [r for r in self._running_jobs if not r.job.done]
                if self._running_jobs and (soonest > 0 or not moved):
                    self._new.wait(soonest if soonest > 0 else 0.01)

    def _step(self, running: _Running, now: float) -> bool:
        """One token of one request; whether anything was done."""
        job, words = running.job, running.words
        if job.cancelled and "ignore_cancel" not in words:
            job.finish(["cancelled"], self._usage(running))
            return True
        if "hold_gil" in words:
            ctypes.PyDLL(None).sleep(300)
        if "hang" in words or job.blocked:
            return False
        if "die_after_n" in words and running.spoken >= int(words["die_after_n"]):
            self.outbox.flush()
            time.sleep(0.05)  # let the writer thread hand over what was said
            die()
        self._steps += 1
        if running.spoken < len(running.script):
            text = running.script[running.spoken] + " "
        else:
            text = "x" * 1024 if "flood" in words else f"tok{running.spoken} "
        job.emit(0, _delta(job.task, text, running.spoken))
        running.spoken += 1
        if running.pause:
            # The next beat of a clock that all of the same pace share, so that they step together.
            running.due = (now // running.pause + 1) * running.pause
        if running.spoken >= running.left and "ignore_cancel" not in words:
            job.finish(["length"], self._usage(running), result=_result(job.task))
        return True

    @staticmethod
    def _usage(running: _Running) -> dict[str, int]:
        prompt = len(_text(running.job.task).split())
        return {"prompt_tokens": prompt, "completion_tokens": running.spoken, "cached_tokens": 0}

    def _embed(self, job: Job) -> None:
        assert isinstance(job.task, Embed)
        for index, text in enumerate(job.task.inputs):
            digest = hashlib.sha256(str(text).encode()).digest()
            values = [b / 255 - 0.5 for b in digest[:8]]
            norm = sum(v * v for v in values) ** 0.5 or 1.0
            job.emit(index, {"vector": struct.pack("<8f", *(v / norm for v in values))})
        job.finish(["stop"], {"prompt_tokens": sum(len(str(t).split()) for t in job.task.inputs)})
        self.outbox.flush()

    def _touch(self, count: int) -> None:
        if count:
            # os.urandom would be slow, zeros would share one page.
            self._eaten.append(bytearray(b"\x01") * count)

    @staticmethod
    def _take_device(options: dict[str, Any]) -> None:
        policy = "now"
        if options.get("never_release"):
            policy = "never"
        for kind in ("late", "falling"):
            if options.get(f"{kind}_release"):
                policy = f"{kind}:{options[f'{kind}_release']}"
        # Our pid as the supervisor sees it, from inside a PID namespace too.
        pid, token = os.readlink("/proc/self"), os.environ.get("UML_LAUNCH_TOKEN", "none")
        segment = Path(options["fake_dir"]) / f"seg.{pid}.{token}.{policy}"
        fd = os.open(segment, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(fd, 0, int(options["fake_bytes"]))
        except OSError as e:
            raise LoadFailed(f"out of memory on the fake device: {e}") from e
        finally:
            os.close(fd)


def _delta(task: Task, text: str, position: int) -> Delta:
    if isinstance(task, Speak):
        return text.encode()
    if isinstance(task, Transcribe):
        place = {"id": position, "start": float(position), "end": position + 1.0}
        return {"text": text, "segment": place, "progress": 0.5}
    return text


def _result(task: Task) -> dict[str, Any]:
    if isinstance(task, Transcribe):
        return {"language": task.language or "en", "duration": 1.0}
    return {"duration": 1.0, "characters": len(task.text)} if isinstance(task, Speak) else {}


def _text(task: Task) -> str:
    if isinstance(task, Speak):
        return task.text
    if isinstance(task, Transcribe):
        return task.prompt or ""
    if isinstance(task, Chat):
        return str(task.messages[-1].get("content", "")) if task.messages else ""
    return str(task.prompt) if isinstance(task, Complete) else ""


def die() -> None:
    """Be killed. The first process of a PID namespace cannot SIGKILL itself, so it just ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)


#: argv: bytes, folder of the fake device or "". It says "ready" on stdout.
_ENGINE = """
import ctypes, mmap, os, signal, sys, time
size, folder = int(sys.argv[1]), sys.argv[2]
worker = os.fork() == 0
signal.signal(signal.SIGTERM, signal.SIG_IGN)
name = b"VLLM::Worker" if worker else b"VLLM::EngineCor"
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
for kind in ("psm_", "sem.mp-"):
    path = f"/dev/shm/{kind}uml-{os.urandom(4).hex()}"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.ftruncate(fd, 4096)
    mapped = mmap.mmap(fd, 4096)
    mapped[:1] = b"x"
held = b"" if folder else bytearray(b"x") * (size // 2)
if folder and worker:
    fd = os.open(f"{folder}/seg.{os.readlink('/proc/self')}.engine.now", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, size)
    os.close(fd)
os.write(1, b"r")
time.sleep(300)
"""


def start_engine(size: int, folder: str | None) -> None:
    """Child and grandchild in the shape of vLLM's EngineCore and Worker, each holding
    `size` bytes between them, of the fake device where there is one, else of RAM."""
    engine = subprocess.Popen(
        [sys.executable, "-I", "-c", _ENGINE, str(size), folder or ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={},
    )
    assert engine.stdout is not None
    engine.stdout.read(2)


def spawn_child(how: str) -> None:
    """A child that no signal to our process group reaches."""
    command = [sys.executable, "-c", "import time; time.sleep(300)"]
    if how == "setsid":
        subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    else:
        subprocess.Popen(command, preexec_fn=os.setpgrp, stdin=subprocess.DEVNULL)
