"""Apple's GPU: its bytes are the machine's RAM, and it may use a part of it.

Source: Metal's recommendedMaxWorkingSetSize (about 2/3 of up to 36 GB, 3/4 of more), and the
sysctl iogpu.wired_limit_mb by which the owner may raise it.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Sequence

import psutil

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine.sources import Vitals

GiB = 1 << 30


def working_set(total_bytes: int, wired_limit_mb: int = 0) -> int:
    """Bytes of a machine's memory that its GPU may use."""
    if wired_limit_mb > 0:
        return min(total_bytes, wired_limit_mb << 20)
    return total_bytes * 2 // 3 if total_bytes <= 36 * GiB else total_bytes * 3 // 4


class Metal:
    error = ""

    def __init__(self) -> None:
        self._devices: list[DeviceMemory] = []
        if sys.platform == "darwin" and platform.machine() == "arm64":
            total = int(psutil.virtual_memory().total)
            size = working_set(total, _sysctl("iogpu.wired_limit_mb"))
            # Free is what it may use: how much RAM is free, RAM itself says.
            self._devices = [DeviceMemory("metal0", "metal", size, size, _chip(), unified=True)]

    def memory(self) -> list[DeviceMemory]:
        return self._devices

    def used_by(self, pids: set[int]) -> Bytes:
        return {}

    def vitals(self) -> dict[str, Vitals]:
        return {}

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


def _ask(name: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=2, check=True
        ).stdout.strip()
    return ""


def _sysctl(name: str) -> int:
    answer = _ask(name)
    return int(answer) if answer.isdigit() else 0


def _chip() -> str:
    return _ask("machdep.cpu.brand_string") or "Apple GPU"
