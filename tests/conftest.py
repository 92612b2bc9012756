"""Mounts the checkout as `uml`, and fails a test that leaves something behind."""

from __future__ import annotations

import gc
import os
import sys
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

#: What ends on its own gets this long before it counts as left behind.
GRACE_S = 5.0


def _children() -> set[str]:
    """Our child processes, zombies too, as "pid command"."""
    me, found = os.getpid(), set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except (OSError, ValueError):
            continue
        if int(rest.split()[1]) == me:
            found.add(f"{name.replace('(', '')} ({rest.split()[0]})")
    return found


def _threads() -> set[str]:
    """Live threads by name; executors' idle daemons and asyncio's resolver pool apart."""
    ours = (t for t in threading.enumerate() if t is not threading.main_thread())
    return {f"{t.name} {t.ident}" for t in ours if not t.name.startswith(("asyncio_", "pydevd"))}


def _fds() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:  # the listing's own descriptor
            continue
    # What hypothesis, the captured streams and lazily imported packages keep is nobody's leak.
    return {fd for fd in found if not fd.endswith((".so", "(deleted)")) and "/dev/urandom" not in fd}


def _segments() -> set[str]:
    shm = Path("/dev/shm")
    return {str(p) for p in shm.glob("uml-*")} if shm.is_dir() else set()


LOOKS = {"process": _children, "thread": _threads, "fd": _fds, "shm": _segments}


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test opened or started and did not end fails it. `@pytest.mark.leaks("fd")` excuses."""
    if not Path("/proc/self/fd").is_dir():
        yield
        return
    marker = request.node.get_closest_marker("leaks")
    looks = {k: look for k, look in LOOKS.items() if k not in (marker.args if marker else ())}
    before = {kind: look() for kind, look in looks.items()}
    yield
    left: dict[str, set[str]] = {}
    deadline = time.monotonic() + GRACE_S
    for kind, look in looks.items():
        while True:
            left[kind] = look() - before[kind]
            if not left[kind] or time.monotonic() > deadline:
                break
            gc.collect()
            time.sleep(0.01)
    found = [f"{kind}: {', '.join(sorted(what))}" for kind, what in left.items() if what]
    if found:
        pytest.fail("left behind: " + "; ".join(found), pytrace=False)
