"""The ledger of memory: who holds how many bytes of which device, and what may still be promised.

One `Budget` belongs to the scheduler; nobody else changes it. A *lease* is bytes promised to one
worker until it is gone and the device has given them back; a *claim* is what a starting worker
waits for while others leave; *residue* is a lease that outlived its worker because the bytes did
not come back. What may be promised on a device is

    min(cap - leases, free - (leases - resident))

where `resident` is what the holders already occupy, so memory of processes that are not ours is
respected and memory that was promised but not yet touched is not promised twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Bytes = dict[str, int]


@dataclass(frozen=True)
class DeviceMemory:
    """A device as it is now. kind: ram | cuda | rocm | metal | fake."""

    name: str
    kind: str
    total_bytes: int
    free_bytes: int
    detail: str = ""


@dataclass
class Lease:
    """Bytes a holder may use. resident: how many of them it occupies, as last measured."""

    holder: str
    bytes: Bytes
    resident: Bytes = field(default_factory=dict)
    residue: bool = False


class Budget:
    """Leases over devices. Pure bookkeeping: the machine's state is handed in by `measured`."""

    def __init__(
        self, caps: Mapping[str, int] | None = None, reserve: Mapping[str, int] | None = None
    ) -> None:
        self._limits = dict(caps or {})
        self._reserve = dict(reserve or {})
        self._devices: dict[str, DeviceMemory] = {}
        self._leases: dict[str, Lease] = {}

    def measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Bytes] | None = None
    ) -> None:
        """Take in what the machine says now. resident: holder -> device -> bytes."""
        self._devices = {d.name: d for d in devices}
        for holder, held in (resident or {}).items():
            if holder in self._leases:
                self._leases[holder].resident = dict(held)

    @property
    def devices(self) -> dict[str, DeviceMemory]:
        return self._devices

    @property
    def leases(self) -> dict[str, Lease]:
        return self._leases

    def cap(self, device: str) -> int:
        """Bytes of `device` that all leases together may reach."""
        known = self._devices.get(device)
        if known is None:
            return 0
        return max(
            0,
            min(self._limits.get(device, known.total_bytes), known.total_bytes)
            - self._reserve.get(device, 0),
        )

    def leased(self, device: str) -> int:
        return sum(lease.bytes.get(device, 0) for lease in self._leases.values())

    def available(self, device: str, holder: str | None = None) -> int:
        """Bytes that may be promised now (see the module's formula); can be negative.

        holder: whose own lease is to be replaced and hence does not count against it.
        """
        known = self._devices.get(device)
        if known is None:
            return 0
        mine = self._leases.get(holder) if holder else None
        others = [lease for lease in self._leases.values() if lease is not mine]
        leased = sum(lease.bytes.get(device, 0) for lease in others)
        untouched = sum(
            max(0, lease.bytes.get(device, 0) - lease.resident.get(device, 0)) for lease in others
        )
        free = known.free_bytes - self._reserve.get(device, 0)
        if mine is not None:
            free += min(mine.resident.get(device, 0), mine.bytes.get(device, 0))
        return min(self.cap(device) - leased, free - untouched)

    def missing(
        self,
        need: Mapping[str, int],
        held_back: Mapping[str, int] | None = None,
        holder: str | None = None,
    ) -> Bytes:
        """Bytes per device that `need` lacks now; empty when it may be promised.

        held_back: free bytes that others wait for.
        """
        held = held_back or {}
        short = {
            d: b - (self.available(d, holder) - held.get(d, 0)) for d, b in need.items() if b > 0
        }
        return {d: b for d, b in short.items() if b > 0}

    def fits_empty(self, need: Mapping[str, int]) -> bool:
        """Whether `need` would fit if nothing of ours were loaded and nobody else were here."""
        return all(b <= self.cap(d) for d, b in need.items() if b > 0)

    def grant(self, holder: str, need: Mapping[str, int]) -> Lease:
        """Give `holder` a lease, replacing a smaller one it had."""
        old = self._leases.get(holder)
        lease = Lease(holder, dict(need), dict(old.resident) if old else {})
        self._leases[holder] = lease
        return lease

    def free(self, holder: str) -> None:
        self._leases.pop(holder, None)

    def keep_as_residue(self, holder: str, remaining: Mapping[str, int]) -> None:
        """The holder is gone and `remaining` bytes are not: they stay counted until they go."""
        self._leases[holder] = Lease(holder, dict(remaining), dict(remaining), residue=True)


def add(*parts: Mapping[str, int]) -> Bytes:
    """Sum of byte maps, device by device."""
    total: Bytes = {}
    for part in parts:
        for device, count in part.items():
            total[device] = total.get(device, 0) + count
    return total


@dataclass(frozen=True)
class Placement:
    """Where a model goes. device: what its layers run on; bytes: need per device."""

    device: str
    bytes: Bytes


def place(
    model_bytes: int,
    process_bytes: int,
    devices: Iterable[DeviceMemory],
    runs_on: Iterable[str],
    caps: Mapping[str, int],
    wanted: str | None = None,
) -> Placement:
    """Best fit on one accelerator the backend runs on, else RAM.

    runs_on: kinds the backend supports ("cpu", "cuda", ...). caps: bytes usable per device.
    wanted: a device asked for by name; it is taken even where the model does not fit, so that
    the refusal names it.
    """
    kinds = set(runs_on)
    able = [d for d in devices if d.kind != "ram" and d.kind in kinds]
    if wanted and wanted != "ram":
        chosen = wanted
    else:
        fitting = [d for d in able if caps.get(d.name, 0) >= model_bytes] if not wanted else []
        chosen = (
            min(fitting, key=lambda d: (d.free_bytes < model_bytes, d.free_bytes)).name
            if (fitting)
            else "ram"
        )
    if chosen == "ram":
        return Placement("ram", {"ram": model_bytes + process_bytes})
    return Placement(chosen, {chosen: model_bytes, "ram": process_bytes})
