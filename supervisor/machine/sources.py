"""What a kind of device has to tell, whoever makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from uml.supervisor.budget import Bytes, DeviceMemory


@dataclass(frozen=True)
class Vitals:
    """How a device is: share of the time it computes (0..1), degrees; None = it does not say."""

    busy: float | None = None
    celsius: float | None = None


class Source(Protocol):
    """The devices of one maker. Nothing here raises: a device that is lost is left out."""

    #: Why there are none; "" when there are, or when it is no surprise.
    error: str

    def memory(self) -> list[DeviceMemory]: ...

    def used_by(self, pids: set[int]) -> Bytes:
        """Bytes per device that these processes hold, as far as the driver tells by pid."""

    def vitals(self) -> dict[str, Vitals]: ...

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        """Environment by which a process sees only these of its devices, in this order."""

    def close(self) -> None: ...


def number(path: Path) -> int | None:
    """The number a file of the kernel's holds; None where there is none."""
    try:
        return int(path.read_text(), 0)
    except (OSError, ValueError):
        return None
