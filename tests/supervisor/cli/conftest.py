"""A home of one's own, a stub to talk to, and a way to run the program for real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.supervisor.stub_server import Stub, stub_server
from uml.supervisor.cli import main

ROOT = Path(__file__).resolve().parents[3]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Uml = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty UML_HOME, a working folder without configuration, a port nobody listens on."""
    monkeypatch.setenv("UML_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UML_SCAN_DEFAULT_STORES", "false")
    monkeypatch.setenv("UML_PORT", str(free_port()))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "home"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def stub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A supervisor to talk to: UML_URL points at it."""
    with stub_server() as found:
        found.routes["GET /health"] = {"service": "uml", "status": "ok"}
        monkeypatch.setenv("UML_URL", found.url)
        yield found


@pytest.fixture
def shell(home: Path) -> Shell:
    """Runs the program as its users do; every stream is a pipe."""

    def run(*argv: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
        kwargs = {"timeout": 60, "stdin": subprocess.DEVNULL} | kwargs
        if "input" in kwargs:
            del kwargs["stdin"]
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *argv],
            capture_output=True,
            text=True,
            env={**os.environ},
            check=False,
            **kwargs,  # type: ignore[call-overload]
        )

    return run


@pytest.fixture
def uml(capsys: pytest.CaptureFixture[str]) -> Uml:
    """Runs the program in this process: exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err, "escape codes reach a pipe"
        assert "Traceback" not in err
        return code, out, err

    return run
