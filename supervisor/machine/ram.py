"""Host memory and cores, within the limits of our cgroups (v1 and v2)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from uml.supervisor.budget import DeviceMemory
from uml.supervisor.machine.sources import number

_CGROUP = Path("/sys/fs/cgroup")
#: A cgroup v1 without a limit reports a number near 2^63.
_NO_LIMIT = 1 << 60


def _stat(path: Path, key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


@dataclass(frozen=True)
class CgroupMemory:
    """The files of one memory cgroup that has a limit. inactive: the key of its reclaimable file
    cache in memory.stat."""

    folder: Path
    limit: str
    usage: str
    inactive: str

    def read(self) -> tuple[int, int] | None:
        """(limit, free) in bytes; None without a limit. Reclaimable file cache counts as free."""
        limit, used = number(self.folder / self.limit), number(self.folder / self.usage)
        if limit is None or used is None or limit >= _NO_LIMIT:
            return None
        return limit, max(0, limit - used + _stat(self.folder / "memory.stat", self.inactive))


def memory_cgroups(
    root: Path = _CGROUP, proc: Path = Path("/proc/self/cgroup")
) -> list[CgroupMemory]:
    """The memory cgroups around us, own and ancestors', v2 and v1 (hierarchies may be hybrid).

    Source: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            bases, names = [root, root / "unified"], ("memory.max", "memory.current")
            inactive = "inactive_file"
        elif "memory" in controllers.split(","):
            bases, names = [root / "memory"], ("memory.limit_in_bytes", "memory.usage_in_bytes")
            inactive = "total_inactive_file"
        else:
            continue
        for base in bases:
            # Inside a container the path is often not what is mounted: try every ancestor.
            for folder in (base / path.lstrip("/"), *(base / path.lstrip("/")).parents):
                if not folder.is_relative_to(base):
                    break
                if (folder / names[0]).exists():
                    found.append(CgroupMemory(folder, *names, inactive))
    return found


def cgroup_memory(groups: Iterable[CgroupMemory]) -> tuple[int, int] | None:
    """(limit, free) of the tightest of `groups`; None when none has a limit."""
    read = [pair for group in groups if (pair := group.read())]
    return min(read, key=lambda pair: pair[1]) if read else None


def ram(groups: Iterable[CgroupMemory] = ()) -> DeviceMemory:
    """Host memory: what the kernel can hand out without swapping, within our cgroups."""
    memory = psutil.virtual_memory()
    total, free, detail = int(memory.total), int(memory.available), ""
    limited = cgroup_memory(groups)
    if limited and limited[0] < total:
        total, detail = limited[0], f"cgroup limit {limited[0]} bytes"
        free = min(free, limited[1])
    return DeviceMemory("ram", "ram", total, free, detail)


def cores() -> int:
    """Cores we may use: affinity, and the cgroup's CPU quota where there is one."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota, period = None, None
    with contextlib.suppress(OSError, ValueError):
        first, second = (_CGROUP / "cpu.max").read_text().split()
        if first != "max":
            quota, period = int(first), int(second)
    if quota is None:
        quota = number(_CGROUP / "cpu/cpu.cfs_quota_us")
        period = number(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota and period and quota > 0:
        count = min(count, max(1, round(quota / period)))
    return max(1, count)
