"""Mounts the checkout as `uml`, keeps tests out of the user's home, and fails one that leaks."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if "uml" not in sys.modules:
    _uml = types.ModuleType("uml")
    _uml.__path__ = [str(ROOT)]
    sys.modules["uml"] = _uml

# No test reads the user's configuration or touches the user's models, whatever it forgets.
for _name in [n for n in os.environ if n.startswith("UML_") and not n.startswith("UML_TEST_")]:
    del os.environ[_name]
_SCRATCH = Path(tempfile.mkdtemp(prefix="uml-tests-"))
os.environ["UML_HOME"] = str(_SCRATCH / "home")
os.environ["UML_CACHE"] = str(_SCRATCH / "cache")
os.environ["XDG_CONFIG_HOME"] = str(_SCRATCH / "config")

#: What ends on its own gets this long before it counts as left behind.
GRACE_S = 5.0


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def llama_python() -> str:
    """The interpreter of a llama_cpp environment; `./run.py test` makes one."""
    return _given("UML_TEST_LLAMA_PYTHON")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder with the real models; `./run.py test` fetches them."""
    return Path(_given("UML_TEST_MODELS"))


@pytest.fixture(scope="session")
def speech() -> None:
    """The environments of both speech backends and their models; `./run.py test` sees to them."""
    for backend in ("WHISPER_PYTHON", "PIPER_PYTHON", "SPEECH_MODELS"):
        _given(f"UML_TEST_{backend}")


def _given(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: ./run.py test sees to it")
    return value


def _children() -> set[str]:
    """Our child processes, zombies too, as "name (pid)"."""
    me, found = os.getpid(), set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, rest = stat.read_text(errors="replace").rsplit(")", 1)
        except (OSError, ValueError):  # gone meanwhile
            continue
        state, parent = rest.split()[:2]
        if int(parent) == me:
            pid, name = head.split(" (", 1)
            found.add(f"{name} ({pid}{', zombie' if state == 'Z' else ''})")
    return found


def _threads() -> set[str]:
    """Live threads by name; pools that asyncio keeps until its loop ends apart."""
    ours = (t for t in threading.enumerate() if t is not threading.main_thread())
    return {f"{t.name} {t.ident}" for t in ours if not t.name.startswith("asyncio_")}


def _fds() -> set[str]:
    """Open descriptors with what they point at; files without a name are pytest's captures."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        if not target.endswith((".so", "(deleted)")) and target != "/dev/urandom":
            found.add(f"{fd} -> {target}")
    return found


#: A pid in a file's name, and no digit of a random suffix.
_PID = re.compile(r"(?<![a-z0-9])\d+(?![a-z0-9])")


def _segments() -> set[str]:
    """Our /dev/shm entries; one that names another live process belongs to that one's tests."""
    return {
        str(path)
        for path in Path("/dev/shm").glob("uml-*")
        if not any(map(_somebody_else, _PID.findall(path.name)))
    }


def _somebody_else(pid: str) -> bool:
    return int(pid) != os.getpid() and Path("/proc", pid).exists()


LOOKS = {"process": _children, "thread": _threads, "fd": _fds, "shm": _segments}


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves something running or open fails; `@pytest.mark.leaks("fd")` excuses."""
    if not Path("/proc/self/fd").is_dir():
        yield
        return
    marker = request.node.get_closest_marker("leaks")
    looks = {k: look for k, look in LOOKS.items() if k not in (marker.args if marker else ())}
    before = {kind: look() for kind, look in looks.items()}
    yield
    _adopt_no_more()
    deadline = time.monotonic() + GRACE_S
    left = _left(looks, before)
    while left and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
        left = _left(looks, before)
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


def _adopt_no_more() -> None:
    """A pool that ran in this process made it a child subreaper; later tests' orphans must not
    come home to it. Source: prctl(2)."""
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def _left(looks: dict, before: dict[str, set[str]]) -> list[str]:
    new = {kind: look() - before[kind] for kind, look in looks.items()}
    return [f"{kind}: {', '.join(sorted(what))}" for kind, what in new.items() if what]
