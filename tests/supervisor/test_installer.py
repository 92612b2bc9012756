from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uml.supervisor import installer
from uml.supervisor.installer import InstallError


def test_run_hands_every_line_to_the_log() -> None:
    lines: list[str] = []
    installer.run([sys.executable, "-c", "print('a'); print('b')"], lines.append)
    assert lines == ["a", "b"]


def test_run_failure_ends_with_the_last_lines() -> None:
    code = "import sys; [print('line', i) for i in range(99)]; sys.exit(3)"
    with pytest.raises(InstallError, match=r"(?s)ended with 3.*line 98$") as caught:
        installer.run([sys.executable, "-c", code], lambda _: None)
    assert "line 1\n" not in str(caught.value)


def test_run_of_a_missing_tool_is_an_install_error() -> None:
    with pytest.raises(InstallError, match="no-such-tool"):
        installer.run(["/no-such-tool"], lambda _: None)


def test_run_gives_no_standard_input() -> None:
    installer.run([sys.executable, "-c", "assert input.__call__ and not open(0).read()"], print)


def test_run_interrupted_leaves_no_process() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        installer.run([sys.executable, "-c", code], interrupt)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with installer.lock(tmp_path / "lock", waits.set):
            order.append("second")

    with installer.lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(flush=True); os.kill(os.getpid(), 9)"
    )
    path = str(tmp_path / "lock")
    subprocess.run([sys.executable, "-c", code, path], check=False, stdout=subprocess.DEVNULL)
    started = time.monotonic()
    with installer.lock(tmp_path / "lock"):
        assert time.monotonic() - started < 5


def test_venv_missing_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installer.shutil, "which", lambda _: None)
    monkeypatch.setattr(installer, "has_venv", lambda: False)
    with pytest.raises(InstallError, match="apt install python3-venv"):
        installer.create_venv(tmp_path / "v", print)
    assert "\n" not in installer.VENV_MISSING


def test_uv_that_fails_gives_way_to_venv_and_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "uv").write_text("#!/bin/sh\necho no index; exit 2\n")
    (bin_dir / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
    log: list[str] = []
    installer.create_venv(tmp_path / "v", log.append)
    assert installer.has_pip(tmp_path / "v")
    monkeypatch.setattr(installer, "has_pip", lambda _: True)
    installer.install(tmp_path / "v", ["pip"], log.append)
    assert "uv could not install, trying pip" in log
