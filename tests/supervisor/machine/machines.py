"""Snapshots of machines that are not here, from `tests/fixtures/machines/`: totals as the cards'
drivers print them, the rest set by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.machine import Vitals

FOLDER = Path(__file__).resolve().parents[2] / "fixtures/machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def machine(name: str) -> list[DeviceMemory]:
    data = json.loads((FOLDER / f"{name}.json").read_text())
    return [DeviceMemory(**device) for device in data["devices"]]


class Recorded:
    """A `Source` that plays the accelerators of a recorded machine."""

    error = ""

    def __init__(self, name: str) -> None:
        self.devices = [d for d in machine(name) if d.kind != "ram"]

    def memory(self) -> list[DeviceMemory]:
        return self.devices

    def used_by(self, pids: set[int]) -> Bytes:
        return {}

    def vitals(self) -> dict[str, Vitals]:
        return {}

    def visible(self, devices: Sequence[str]) -> dict[str, str]:
        return {"SEEN": ",".join(devices)} if devices else {}

    def close(self) -> None:
        pass
