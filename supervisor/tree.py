"""Process trees: who belongs to one, and how to end it so that nobody is left.

On Linux a worker runs in a PID namespace of its own where the kernel allows it: killing its first
process ends everything inside, however it was forked. Elsewhere the supervisor is a *child
subreaper*: what a dead worker leaves behind comes home as our child and is known by the launch
token in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable

import psutil

from uml.supervisor.machine import alive

#: Environment variable that proves a process to be ours.
TOKEN = "UML_LAUNCH_TOKEN"
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Orphaned descendants become our children. Linux only. Source: prctl(2)."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


@functools.cache
def namespace_prefix() -> tuple[str, ...]:
    """The command that runs another one in a PID namespace which dies with us; empty where the
    kernel refuses. `setpriv` sets the parent-death signal, `unshare --kill-child` passes it on.

    Source: unshare(1), setpriv(1) of util-linux.
    """
    setpriv, unshare = shutil.which("setpriv"), shutil.which("unshare")
    if not setpriv or not unshare:
        return ()
    for flags in ("-p", "-Ucp", "-Urp"):
        prefix = (setpriv, "--pdeathsig", "KILL", unshare, flags, "--fork", "--kill-child")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [*prefix, "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=5,
            )
            if done.returncode == 0:
                return prefix
    return ()


def start_time(pid: int) -> float | None:
    """When `pid` started, in a unit that only has to be equal for the same process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return float(f.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        with contextlib.suppress(psutil.Error):
            return float(psutil.Process(pid).create_time())
    return None


def children(pid: int) -> list[int]:
    """Direct children. Source: proc_pid_task_children(5); psutil where the kernel lacks it."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as f:
                found.extend(map(int, f.read().split()))
        return found
    except FileNotFoundError:
        if os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            return found  # the process has just gone
    except OSError:
        return found
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return found


def descendants(pid: int) -> list[int]:
    """All descendants, nearest first. A snapshot: it can race with fork, so ask again."""
    found: list[int] = []
    todo = [pid]
    while todo:
        for child in children(todo.pop(0)):
            if child not in found:
                found.append(child)
                todo.append(child)
    return found


def has_token(pid: int, token: str) -> bool:
    """Whether `pid` was started under `token` (a process may have emptied its environment)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return f"{TOKEN}={token}".encode() in f.read().split(b"\0")
    except OSError:
        with contextlib.suppress(psutil.Error, OSError):
            return psutil.Process(pid).environ().get(TOKEN) == token
    return False


def strays(token: str, session: int) -> list[int]:
    """Processes that came home to us after their parent died, and their descendants: known by
    `token`, or, when they are dead already and have no environment, by the session they began in.
    """
    found: list[int] = []
    for child in children(os.getpid()):
        if child != session and (_session(child) == session or has_token(child, token)):
            found += [child, *descendants(child)]
    return found


def _session(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[3])
    except (OSError, IndexError, ValueError):
        return 0


def everywhere(token: str) -> list[int]:
    """Processes of `token` anywhere on the machine (start-up reaper)."""
    return [pid for pid in psutil.pids() if pid != os.getpid() and has_token(pid, token)]


def send_kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap(pids: Iterable[int]) -> None:
    """Collect the exit of children that came home, by explicit pid."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def living(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if alive(pid)]
