"""AMD devices as the kernel shows them in sysfs: no library, no driver tool needed.

Source: kernel Documentation/gpu/amdgpu (mem_info_vram_*, gpu_busy_percent, hwmon) and the KFD's
topology (nodes) and proc (bytes by pid) folders. Devices are numbered as ROCr numbers them: in the
order of the KFD's nodes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine.sources import Vitals, number

_AMD = 0x1002


@dataclass(frozen=True)
class Card:
    """folder: its device's in sysfs. gpu_id: the KFD's number for it."""

    name: str
    label: str
    folder: Path
    gpu_id: int


class Rocm:
    """root: where /sys is; tests build one of their own."""

    error = ""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._kfd = root / "class/kfd/kfd"
        self.cards = _cards(root)

    def memory(self) -> list[DeviceMemory]:
        found = []
        for card in self.cards:
            total = number(card.folder / "mem_info_vram_total")
            used = number(card.folder / "mem_info_vram_used")
            if total and used is not None:
                free = max(0, total - used)
                found.append(DeviceMemory(card.name, "rocm", total, free, card.label))
        return found

    def used_by(self, pids: set[int]) -> Bytes:
        held: Bytes = {}
        for card in self.cards:
            folders = (self._kfd / "proc" / str(pid) for pid in pids)
            mine = sum(number(folder / f"vram_{card.gpu_id}") or 0 for folder in folders)
            if mine:
                held[card.name] = mine
        return held

    def vitals(self) -> dict[str, Vitals]:
        found = {}
        for card in self.cards:
            busy = number(card.folder / "gpu_busy_percent")
            sensors = sorted(card.folder.glob("hwmon/hwmon*/temp1_input"))
            heat = number(sensors[0]) if sensors else None
            found[card.name] = Vitals(
                None if busy is None else busy / 100, None if heat is None else heat / 1000
            )
        return found

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        mine = [name.removeprefix("rocm") for name in devices if name.startswith("rocm")]
        return {"ROCR_VISIBLE_DEVICES": ",".join(mine)} if mine else {}

    def close(self) -> None:
        pass


def _cards(root: Path) -> list[Card]:
    drawn = {}
    for folder in sorted(root.glob("class/drm/card*/device")):
        if number(folder / "vendor") == _AMD and (folder / "mem_info_vram_total").exists():
            drawn[_facts(folder / "uevent", "=").get("PCI_SLOT_NAME", "")] = folder
    cards: list[Card] = []
    nodes = (root / "class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for node in sorted(nodes, key=lambda n: int(n.name)):
        gpu_id = number(node / "gpu_id")
        properties = _facts(node / "properties", " ")
        if not gpu_id or not properties:  # a processor
            continue
        address = _address(properties)
        if address in drawn:
            folder = drawn[address]
            cards.append(Card(f"rocm{len(cards)}", _label(folder), folder, gpu_id))
    return cards


def _address(properties: Mapping[str, str]) -> str:
    """A node's PCI address; location_id is bus << 8 | device << 3 | function."""
    with contextlib.suppress(ValueError):
        domain, place = int(properties.get("domain", "0")), int(properties["location_id"])
        return f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
    return ""


def _label(folder: Path) -> str:
    """The product's name, or the PCI ids by which it can be looked up."""
    with contextlib.suppress(OSError):
        if name := (folder / "product_name").read_text().strip():
            return name
    vendor, device = number(folder / "vendor") or 0, number(folder / "device") or 0
    return f"AMD {vendor:04x}:{device:04x}"


def _facts(path: Path, between: str) -> dict[str, str]:
    """The lines of a file as key and value; nothing when it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {k: v for k, found, v in (line.partition(between) for line in lines) if found}


def has_driver() -> bool:
    """Whether the kernel drives AMD devices for computing at all."""
    return os.path.exists("/dev/kfd")
