"""A device for tests: files in /dev/shm, which outlive a SIGKILL as a driver's bytes may."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine.processes import alive
from uml.supervisor.machine.sources import Vitals


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


class Fakes:
    """text: "name:bytes:folder", several joined by commas; None = there are none."""

    error = ""

    def __init__(self, text: str | None) -> None:
        self.devices: list[FakeDevice] = []
        for one in text.split(",") if text else ():
            name, size, folder = one.split(":", 2)
            self.devices.append(FakeDevice(name, int(size), Path(folder)))

    def memory(self) -> list[DeviceMemory]:
        return [device.memory() for device in self.devices]

    def used_by(self, pids: set[int]) -> Bytes:
        return {d.name: held for d in self.devices if (held := d.used_by(pids))}

    def vitals(self) -> dict[str, Vitals]:
        return {}

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass
