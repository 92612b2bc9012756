"""The servers that are measured: ours as a user starts it, llama-server beside it, a bare loop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.integration.serving import CHAT, Serving, serving
from uml.plugins.builtin import LLAMA_CPP
from uml.supervisor.bench import Figures, Server

BARE_LOOP = Path(__file__).with_name("bare_loop.py")
THREADS = len(os.sched_getaffinity(0))


def chat_model() -> Path:
    """The GGUF that all are measured with."""
    return next(Path(os.environ["UML_TEST_MODELS"]).glob("SmolLM2*.gguf"))


@contextlib.contextmanager
def ours(**environ: str) -> Iterator[Serving]:
    """A supervisor with an empty home."""
    with tempfile.TemporaryDirectory(prefix="uml-bench-") as home:
        with serving(Path(home), **environ) as s:
            yield s


def as_server(s: Serving, model: str = CHAT) -> Server:
    return Server("uml", s.url, model)


@contextlib.contextmanager
def llama_server(
    binary: Path, name: str, argv: Sequence[str], model: str = CHAT, **environ: str
) -> Iterator[tuple[Server, int]]:
    """A llama-server with `argv`; its address and pid."""
    port = _free_port()
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "-t", str(THREADS), *argv]
    with _process(command, os.environ | environ) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield Server(name, url, model), process.pid


def single(slots: int, context: int) -> list[str]:
    """Arguments for the chat model with `slots`, of `context` tokens each."""
    return ["-m", str(chat_model()), "-np", str(slots), "-c", str(slots * context)]


@contextlib.contextmanager
def beside(
    binary: Path | None, slots: Sequence[int], context: int = 1024
) -> Iterator[list[Server]]:
    """Ours, and if there is a binary a llama-server for each number of slots, of `context` tokens
    each."""
    with contextlib.ExitStack() as stack:
        found = [as_server(stack.enter_context(ours()))]
        if binary is not None:
            for count in slots:
                argv = single(count, context if count <= 8 else context // 2)
                there = llama_server(binary, f"llama-server -np {count}", argv)
                found.append(stack.enter_context(there)[0])
        yield found


@contextlib.contextmanager
def two_models() -> Iterator[tuple[Path, tuple[str, str]]]:
    """A folder with the chat model under two names; what llama-server and we call them."""
    with tempfile.TemporaryDirectory(prefix="uml-bench-models-") as folder:
        names = ("swap-a", "swap-b")
        for name in names:
            shutil.copyfile(chat_model(), Path(folder) / f"{name}.gguf")
        yield Path(folder), names


@contextlib.contextmanager
def _process(command: Sequence[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """What it prints goes nowhere: a full pipe would stop it."""
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise TimeoutError(f"{url} did not come up; exit code {process.returncode}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Bare:
    """The bare loop, in the backend's Python, with the worker's environment."""

    def __init__(self, slots: int) -> None:
        python = os.environ["UML_TEST_LLAMA_PYTHON"]
        self._process = subprocess.Popen(
            [python, str(BARE_LOOP), str(chat_model()), str(THREADS), str(slots)],
            env=os.environ | LLAMA_CPP.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise RuntimeError("the bare loop did not start")

    def load(self, streams: int, tokens: int, prompt: int, head: int) -> Figures:
        """What `bench.load_streams` says, as far as it applies."""
        job = {"streams": streams, "tokens": tokens, "prompt": prompt, "head": head}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return {
            "tokens_per_s": streams * tokens / found["seconds"],
            "first_p50_s": found["first_s"],
        }

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        self._process.wait(20)


def resident(pid: int) -> float:
    """Megabytes (10^6) that a process holds, mapped files included."""
    return psutil.Process(pid).memory_info().rss / 1e6
