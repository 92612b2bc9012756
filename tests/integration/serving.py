"""A supervisor as a user has it: `run.py serve` in a process of its own, with an empty home."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from uml.supervisor.client import Client

RUN = Path(__file__).resolve().parents[2] / "run.py"
CHAT, BASE, EMBED = "smollm2-135m-instruct", "gemma-3-270m", "all-minilm-l6-v2"
STT, TTS = "whisper-tiny-en", "joe"
#: Backend -> the variable that leads to its environment's interpreter.
BACKENDS = {
    "llama_cpp": "UML_TEST_LLAMA_PYTHON",
    "whisper_cpp": "UML_TEST_WHISPER_PYTHON",
    "piper": "UML_TEST_PIPER_PYTHON",
}


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.01)
    return value


class Serving:
    """A running supervisor: its address, a client for it, its process."""

    def __init__(self, home: Path, url: str, process: subprocess.Popen[str]) -> None:
        self.home, self.url, self.process = home, url, process
        self.client = Client(url)

    def worker(self, model: str) -> dict[str, Any]:
        return next(w for w in self.client.status()["workers"] if w["model"] == model)

    def tree(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def rss(self) -> int:
        return sum(p.memory_info().rss for p in self.tree() if p.is_running())


def fake_model(home: Path, name: str, **facts: Any) -> None:
    (home / "models").mkdir(parents=True, exist_ok=True)
    (home / "models" / f"{name}.fake.json").write_text(json.dumps({"name": name, **facts}))


@contextmanager
def serving(home: Path, **environ: str) -> Iterator[Serving]:
    """With the real models and the backends' environments where the test run has them."""
    (home / "backends").mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "UML_HOME": str(home),
        "UML_SCAN_DEFAULT_STORES": "false",
        "UML_PORT": "0",
        "UML_MODEL_DIRS": os.pathsep.join(
            folder
            for name in ("UML_TEST_MODELS", "UML_TEST_SPEECH_MODELS")
            if (folder := os.environ.get(name))
        ),
    }
    for backend, variable in BACKENDS.items():
        link = home / "backends" / backend
        if (python := os.environ.get(variable)) and not link.exists():
            link.symlink_to(Path(python).parent.parent)
    errors = (home / "stderr.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, str(RUN), "serve"],
        env=env | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    errors.close()
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://\S+)\n", line)
        assert found, f"{line!r}: {(home / 'stderr.log').read_text()[-2000:]}"
        yield Serving(home, found[1], process)
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
