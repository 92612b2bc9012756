"""What processes hold, and whether they live: from /proc, by psutil where there is none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessMemory:
    """rss: resident bytes incl. mapped files. anon: what only this process's death frees."""

    rss: int = 0
    anon: int = 0


def process_memory(pids: Iterable[int]) -> ProcessMemory:
    """Sum over `pids`; processes that are gone count nothing."""
    rss = anon = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as f:
                fields = f.read().split()
            rss += int(fields[1]) * _PAGE
            anon += (int(fields[1]) - int(fields[2])) * _PAGE
        except (OSError, IndexError, ValueError):
            if os.path.isdir("/proc/self"):
                continue
            with contextlib.suppress(psutil.Error):
                value = psutil.Process(pid).memory_info().rss
                rss, anon = rss + value, anon + value
    return ProcessMemory(rss, anon)


def anonymous_bytes() -> int | None:
    """Anonymous memory of the whole machine, the kernel's own word on what a kill freed."""
    try:
        with open("/proc/meminfo", "rb") as f:
            for line in f:
                if line.startswith(b"AnonPages:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory so far. Source: proc_vmstat."""
    try:
        with open("/proc/vmstat", "rb") as f:
            for line in f:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        if os.path.isdir("/proc/self"):
            return False
        return psutil.pid_exists(pid)
