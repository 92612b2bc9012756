"""Virtual environments made by uv where it is at hand, else by venv and pip. Stdlib only: this
is what runs before any dependency is there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Gets every line a tool prints.
Sink = Callable[[str], None]


class InstallError(Exception):
    """A step failed; the message is for people and says what to do where that is known."""


VENV_MISSING = (
    "this Python has neither venv with pip nor is uv on PATH: apt install python3-venv "
    "(or install uv)"
)


def base_python() -> str:
    """The interpreter outside any virtual environment: what new environments are made from."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def has_venv() -> bool:
    """Whether `python -m venv` would give an environment with pip (Debian splits it off)."""
    probe = [base_python(), "-c", "import ensurepip, venv; ensurepip.version()"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def require_venv() -> None:
    """Raises: InstallError, one line, when no environment can be made here."""
    if not shutil.which("uv") and not has_venv():
        raise InstallError(VENV_MISSING)


def venv_python(venv: Path) -> Path:
    """The interpreter inside an environment."""
    return venv / "bin" / "python"


def create_venv(venv: Path, log: Sink, *, pip: bool = False) -> None:
    """Make an environment. pip: it must have pip even when uv made it.

    Raises: InstallError.
    """
    uv = shutil.which("uv")
    if uv:
        seed = ["--seed"] if pip else []
        try:
            run([uv, "venv", "--quiet", *seed, "--python", base_python(), str(venv)], log)
            return
        except InstallError:
            log("uv could not make the environment, trying venv")
            shutil.rmtree(venv, ignore_errors=True)
    if not has_venv():
        raise InstallError(VENV_MISSING)
    run([base_python(), "-m", "venv", str(venv)], log)


def install(venv: Path, requirements: Sequence[str], log: Sink) -> None:
    """Install into an environment. uv does not know pip's configuration (indexes, find-links),
    so where uv fails pip has the last word. Raises: InstallError."""
    python, uv = str(venv_python(venv)), shutil.which("uv")
    if uv:
        try:
            run([uv, "pip", "install", "--python", python, *requirements], log)
            return
        except InstallError:
            log("uv could not install, trying pip")
            if not has_pip(venv):
                run([uv, "pip", "install", "--quiet", "--python", python, "pip"], log)
    run([*pip_command(venv), "install", *requirements], log)


def has_pip(venv: Path) -> bool:
    probe = [str(venv_python(venv)), "-c", "import pip"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def pip_command(venv: Path) -> list[str]:
    """pip of an environment, without questions and without its own advertising."""
    return [
        str(venv_python(venv)),
        *("-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color"),
    ]


def run(command: Sequence[str], log: Sink, env: Mapping[str, str] | None = None) -> None:
    """Run a tool, every line it prints going to `log`; its whole process group ends with us.

    Raises: InstallError with the last lines when it fails or is not there.
    """
    tail: list[str] = []
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as e:
        raise InstallError(f"cannot run {command[0]}: {e.strerror}") from e
    with process:
        try:
            for line in process.stdout or ():
                log(line.rstrip("\n"))
                tail = [*tail[-29:], line.rstrip("\n")]
            code = process.wait()
        except BaseException:  # Ctrl-C too: a compiler left behind would eat the machine
            os.killpg(process.pid, 9)
            raise
    if code != 0:
        what = " ".join(os.path.basename(part) for part in command[:4])
        raise InstallError("\n".join([f"{what} ended with {code}:", *tail]))


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file; the kernel gives it back however we end. waiting: called once when
    somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
