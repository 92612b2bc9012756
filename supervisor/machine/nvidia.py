"""NVIDIA devices by NVML; a machine without a driver has none, which is ordinary.

Source: NVML's API reference. Devices are numbered as the driver does (by PCI address), but
processes are told by UUID which they may see: CUDA's own numbers follow another order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine.sources import Vitals


@dataclass(frozen=True)
class Card:
    """label: its model's name. handle: NVML's."""

    name: str
    label: str
    uuid: str
    handle: Any


@dataclass
class Nvidia:
    """cards: those that `CUDA_VISIBLE_DEVICES` leaves us."""

    cards: list[Card] = field(default_factory=list)
    error: str = ""
    driver: str = ""

    @classmethod
    def open(cls, env: Mapping[str, str] = os.environ) -> Nvidia:
        try:
            import pynvml
        except ImportError as e:
            return cls(error=str(e))
        try:
            pynvml.nvmlInit()
            cards = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                label = str(pynvml.nvmlDeviceGetName(handle))
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
                cards.append(Card(f"cuda{index}", label, uuid, handle))
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            return cls(allowed(cards, env.get("CUDA_VISIBLE_DEVICES")), driver=driver)
        except pynvml.NVMLError as e:
            return cls(error=str(e))

    def memory(self) -> list[DeviceMemory]:
        if not self.cards:
            return []
        import pynvml

        found = []
        for card in self.cards:
            with contextlib.suppress(pynvml.NVMLError):  # fell off the bus
                info = pynvml.nvmlDeviceGetMemoryInfo(card.handle)
                total, free = int(info.total), int(info.free)
                found.append(DeviceMemory(card.name, "cuda", total, free, card.label))
        return found

    def used_by(self, pids: set[int]) -> Bytes:
        """In containers NVML speaks of the host's pids and finds none of ours."""
        if not self.cards:
            return {}
        import pynvml

        held: Bytes = {}
        for card in self.cards:
            with contextlib.suppress(pynvml.NVMLError):
                processes = pynvml.nvmlDeviceGetComputeRunningProcesses(card.handle)
                mine = sum(int(p.usedGpuMemory or 0) for p in processes if p.pid in pids)
                if mine:
                    held[card.name] = mine
        return held

    def vitals(self) -> dict[str, Vitals]:
        if not self.cards:
            return {}
        import pynvml

        found = {}
        for card in self.cards:
            busy = celsius = None
            with contextlib.suppress(pynvml.NVMLError):
                busy = pynvml.nvmlDeviceGetUtilizationRates(card.handle).gpu / 100
            with contextlib.suppress(pynvml.NVMLError):
                sensor = pynvml.NVML_TEMPERATURE_GPU
                celsius = float(pynvml.nvmlDeviceGetTemperature(card.handle, sensor))
            found[card.name] = Vitals(busy, celsius)
        return found

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        uuids = {card.name: card.uuid for card in self.cards}
        mine = [uuids[name] for name in devices if name in uuids]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine else {}

    def close(self) -> None:
        if self.cards:
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self.cards = []


def allowed(cards: list[Card], wanted: str | None) -> list[Card]:
    """Those of `cards` that CUDA_VISIBLE_DEVICES names, by number or the beginning of the UUID;
    as for CUDA itself, what follows a name that is not known does not count."""
    if wanted is None:
        return cards
    found: list[Card] = []
    for word in (w.strip() for w in wanted.split(",")):
        same = [c for c in cards if c.name == f"cuda{word}" or (word and c.uuid.startswith(word))]
        if len(same) != 1:
            break
        found += [c for c in same if c not in found]
    return found
