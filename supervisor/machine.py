"""What the machine has and how much of it is free now.

RAM respects cgroup limits (v1 and v2), NVIDIA devices are read by NVML, and a *fake device* (a
quota of files in /dev/shm, which survive a SIGKILL as a driver's memory may) stands in for a GPU
in tests. Nothing is cached but handles: a snapshot is read from the kernel each time, about 0.1 ms
without NVML.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from uml.supervisor.budget import Bytes, DeviceMemory

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUP = Path("/sys/fs/cgroup")
#: A cgroup v1 without a limit reports a number near 2^63.
_NO_LIMIT = 1 << 60


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


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
        limit, used = _number(self.folder / self.limit), _number(self.folder / self.usage)
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
        quota = _number(_CGROUP / "cpu/cpu.cfs_quota_us")
        period = _number(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota and period and quota > 0:
        count = min(count, max(1, round(quota / period)))
    return max(1, count)


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


class FakeDevice:
    """Plays a driver: segments `seg.<pid>.<token>.<policy>` hold its bytes; those of a dead pid
    go by their policy: `now`, `late:<s>` after the death, `falling:<s>` evenly, `never`."""

    def __init__(self, name: str, total_bytes: int, folder: Path) -> None:
        self.name, self.total_bytes, self.folder = name, total_bytes, folder
        self._dead_since: dict[str, tuple[float, int]] = {}

    def _segments(self) -> list[tuple[int, int]]:
        held: list[tuple[int, int]] = []
        try:
            names = os.listdir(self.folder)
        except OSError:
            return held
        for name in names:
            parts = name.split(".", 3)
            if len(parts) != 4 or parts[0] != "seg" or not parts[1].isdigit():
                continue
            path, pid = self.folder / name, int(parts[1])
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                if not alive(pid):
                    size = self._reclaim(path, name, parts[3], size)
                if size:
                    held.append((pid, size))
        return held

    def _reclaim(self, path: Path, name: str, policy: str, size: int) -> int:
        since, original = self._dead_since.setdefault(name, (time.monotonic(), size))
        kind, _, argument = policy.partition(":")
        elapsed, lasts = time.monotonic() - since, float(argument or 0)
        if kind == "never":
            return size
        if kind == "falling" and elapsed < lasts:
            left = int(original * (1 - elapsed / lasts))
            os.truncate(path, left)
            return left
        if kind == "late" and elapsed < lasts:
            return size
        path.unlink(missing_ok=True)
        self._dead_since.pop(name, None)
        return 0

    def memory(self) -> DeviceMemory:
        used = sum(size for _, size in self._segments())
        return DeviceMemory(self.name, "fake", self.total_bytes, self.total_bytes - used)

    def used_by(self, pids: set[int]) -> int:
        return sum(size for pid, size in self._segments() if pid in pids)


def alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        if os.path.isdir("/proc/self"):
            return False
        return psutil.pid_exists(pid)


@dataclass
class Nvidia:
    """NVIDIA devices by NVML; an ordinary machine without a driver has none."""

    handles: list[tuple[str, str, Any]] = field(default_factory=list)
    error: str = ""
    driver: str = ""

    @classmethod
    def open(cls) -> Nvidia:
        try:
            import pynvml
        except ImportError as e:
            return cls(error=str(e))
        try:
            pynvml.nvmlInit()
            handles = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                handles.append((f"cuda{index}", str(pynvml.nvmlDeviceGetName(handle)), handle))
            return cls(handles, driver=str(pynvml.nvmlSystemGetDriverVersion()))
        except pynvml.NVMLError as e:
            return cls(error=str(e))

    def memory(self) -> list[DeviceMemory]:
        if not self.handles:
            return []
        import pynvml

        found = []
        for name, label, handle in self.handles:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(DeviceMemory(name, "cuda", int(info.total), int(info.free), label))
        return found

    def used_by(self, pids: set[int]) -> Bytes:
        """Bytes our pids hold. In containers NVML speaks of the host's pids and finds none."""
        if not self.handles:
            return {}
        import pynvml

        held: Bytes = {}
        for name, _, handle in self.handles:
            with contextlib.suppress(pynvml.NVMLError):
                processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
                mine = sum(int(p.usedGpuMemory or 0) for p in processes if p.pid in pids)
                if mine:
                    held[name] = mine
        return held

    def close(self) -> None:
        if self.handles:
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self.handles = []


class Machine:
    """All devices behind one `snapshot()`.

    fake_device: "name:bytes:folder", for tests.
    """

    def __init__(self, fake_device: str | None = None) -> None:
        self._nvidia = Nvidia.open()
        self._fakes: list[FakeDevice] = []
        if fake_device:
            name, size, folder = fake_device.split(":", 2)
            self._fakes.append(FakeDevice(name, int(size), Path(folder)))
        self._cgroups = memory_cgroups()
        self.cores = cores()

    @property
    def fake_folders(self) -> dict[str, str]:
        """Fake device -> folder of its segments, which the fake backend has to know."""
        return {fake.name: str(fake.folder) for fake in self._fakes}

    @property
    def nvidia(self) -> Nvidia:
        return self._nvidia

    def snapshot(self) -> list[DeviceMemory]:
        return [
            ram(self._cgroups),
            *self._nvidia.memory(),
            *(fake.memory() for fake in self._fakes),
        ]

    def used_by(self, pids: Iterable[int]) -> Bytes:
        """Bytes per device that these processes hold; RAM counts what a kill would free."""
        ours = set(pids)
        held = {"ram": process_memory(ours).anon} | self._nvidia.used_by(ours)
        for fake in self._fakes:
            if count := fake.used_by(ours):
                held[fake.name] = count
        return held

    def close(self) -> None:
        self._nvidia.close()
