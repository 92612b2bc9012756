"""Shared memory that a process tree leaves behind: files under /dev/shm that nobody maps any more.

Named segments and semaphores (Python's `psm_*` and `sem.mp-*`, NCCL's, torch's) outlive a SIGKILL
and hold RAM until somebody deletes them. What a tree mapped or had open while it lived, and no
living process has now, is deleted once the tree is gone.

Source: shm_overview(7), proc_pid_maps(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import psutil

FOLDER = "/dev/shm/"
_DELETED = " (deleted)"


def held(pids: Iterable[int]) -> set[str]:
    """Paths of shared memory that these processes map or have open."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as f:
            for line in f:
                if FOLDER.encode() in line:
                    found.add(os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")))
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {path for path in found if path.startswith(FOLDER) and not path.endswith(_DELETED)}


def sweep(paths: Iterable[str]) -> list[str]:
    """Delete those of `paths` that are ours and that nobody holds any more; what was deleted."""
    left = {path for path in paths if _is_ours(path)}
    if not left:
        return []
    swept = []
    for path in sorted(left - held(psutil.pids())):
        with contextlib.suppress(OSError):
            os.unlink(path)
            swept.append(path)
    return swept


def _is_ours(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_uid == os.geteuid()
    return False
