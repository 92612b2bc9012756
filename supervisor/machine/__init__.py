"""What the machine has and how much of it is free now: all devices behind one `snapshot()`.

RAM respects cgroup limits, NVIDIA is read by NVML, AMD from sysfs, Apple's GPU is a share of RAM,
and a *fake device* stands in for a GPU in tests. Nothing is cached but handles: a snapshot is read
from the kernel each time, about 0.1 ms without NVML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine.fake import FakeDevice, Fakes
from uml.supervisor.machine.metal import Metal
from uml.supervisor.machine.nvidia import Nvidia
from uml.supervisor.machine.processes import (
    ProcessMemory,
    alive,
    anonymous_bytes,
    oom_kills,
    process_memory,
)
from uml.supervisor.machine.ram import CgroupMemory, cgroup_memory, cores, memory_cgroups, ram
from uml.supervisor.machine.rocm import Rocm
from uml.supervisor.machine.sources import Source, Vitals

__all__ = [
    "CgroupMemory",
    "FakeDevice",
    "Machine",
    "Metal",
    "Nvidia",
    "ProcessMemory",
    "Rocm",
    "Source",
    "Vitals",
    "alive",
    "anonymous_bytes",
    "cgroup_memory",
    "cores",
    "memory_cgroups",
    "oom_kills",
    "process_memory",
    "ram",
]


class Machine:
    """fake_device: see `Fakes`. sources: where devices other than RAM come from; for tests."""

    def __init__(
        self, fake_device: str | None = None, sources: Sequence[Source] | None = None
    ) -> None:
        self._fakes = Fakes(fake_device)
        found = (Nvidia.open(), Rocm(), Metal()) if sources is None else sources
        self.sources: list[Source] = [*found, self._fakes]
        self._cgroups = memory_cgroups()
        self.cores = cores()

    @property
    def fake_folders(self) -> dict[str, str]:
        """Fake device -> folder of its segments, which the fake backend has to know."""
        return {fake.name: str(fake.folder) for fake in self._fakes.devices}

    def snapshot(self) -> list[DeviceMemory]:
        """RAM first, then every accelerator."""
        return [ram(self._cgroups), *(d for s in self.sources for d in s.memory())]

    def used_by(self, pids: Iterable[int]) -> Bytes:
        """Bytes per device that these processes hold; RAM counts what a kill would free."""
        ours = set(pids)
        held = {"ram": process_memory(ours).anon}
        for source in self.sources:
            held |= source.used_by(ours)
        return held

    def vitals(self) -> dict[str, Vitals]:
        """How busy and how warm each accelerator is, as far as it says."""
        return {name: v for s in self.sources for name, v in s.vitals().items()}

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        """Environment by which a process sees only these devices, in this order."""
        return {name: value for s in self.sources for name, value in s.visible(devices).items()}

    def close(self) -> None:
        for source in self.sources:
            source.close()
