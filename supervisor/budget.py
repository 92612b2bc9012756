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

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Bytes = dict[str, int]

#: What begins so is no memory but a place that only so many models can have at once.
_PLACE = "place:"
#: The place that every loaded model has where their number is limited.
LOADED = _PLACE + "loaded"


def place_of(*members: str) -> str:
    """The place that these share: a group's, or that of two models in conflict."""
    return _PLACE + "|".join(sorted(members))


def is_place(thing: str) -> bool:
    """Whether a lease's entry counts places instead of bytes of a device."""
    return thing.startswith(_PLACE)


@dataclass(frozen=True)
class DeviceMemory:
    """A device as it is now. kind: ram | cuda | rocm | metal | fake. unified: its bytes are RAM's,
    and free ones are counted there."""

    name: str
    kind: str
    total_bytes: int
    free_bytes: int
    detail: str = ""
    unified: bool = False


@dataclass
class Lease:
    """What a holder may use: bytes per device, and places. resident: how many of the bytes it
    occupies, as last measured."""

    holder: str
    bytes: Bytes
    resident: Bytes = field(default_factory=dict)
    residue: bool = False

    def on_devices(self) -> Bytes:
        """Without the places."""
        return {d: b for d, b in self.bytes.items() if not is_place(d)}

    def untouched(self, device: str) -> int:
        """Promised and not occupied yet."""
        return max(0, self.bytes.get(device, 0) - self.resident.get(device, 0))


class Budget:
    """Leases over devices. Pure bookkeeping: the machine's state is handed in by `measured`.

    caps, reserve: device -> bytes. places: how many models may share a place; one, unless said.
    """

    def __init__(
        self,
        caps: Mapping[str, int] | None = None,
        reserve: Mapping[str, int] | None = None,
        places: Mapping[str, int] | None = None,
    ) -> None:
        self._limits = dict(caps or {})
        self._reserve = dict(reserve or {})
        self.places = dict(places or {})
        #: Device -> free bytes below which nothing is promised (see `relief`).
        self.low: Bytes = {}
        self._devices: dict[str, DeviceMemory] = {}
        self._leases: dict[str, Lease] = {}
        # Per device or place, so that nothing here takes longer the more models there are.
        self._holders: dict[str, dict[str, Lease]] = {}
        self._leased: Counter[str] = Counter()
        self._untouched: Counter[str] = Counter()

    def limit(self, caps: Mapping[str, int], reserve: Mapping[str, int]) -> None:
        """Other limits from now on; what is leased beyond them stays."""
        self._limits, self._reserve = dict(caps), dict(reserve)

    def measured(
        self, devices: Iterable[DeviceMemory], resident: Mapping[str, Bytes] | None = None
    ) -> None:
        """Take in what the machine says now. resident: holder -> device -> bytes."""
        self._devices = {d.name: d for d in devices}
        for holder, held in (resident or {}).items():
            if lease := self._leases.get(holder):
                self._put(Lease(holder, lease.bytes, dict(held), lease.residue))

    @property
    def devices(self) -> dict[str, DeviceMemory]:
        return self._devices

    @property
    def leases(self) -> Mapping[str, Lease]:
        return self._leases

    def holders(self, thing: str) -> Mapping[str, Lease]:
        """Who holds something of a device or place."""
        return self._holders.get(thing, {})

    def cap(self, thing: str) -> int:
        """What all leases on a device or place together may reach."""
        if is_place(thing):
            return self.places.get(thing, 1)
        known = self._devices.get(thing)
        if known is None:
            return 0
        return max(
            0,
            min(self._limits.get(thing, known.total_bytes), known.total_bytes)
            - self._reserve.get(thing, 0),
        )

    def leased(self, thing: str) -> int:
        return self._leased[thing]

    def available(self, thing: str, holder: str | None = None) -> int:
        """What may be promised now (see the module's formula); can be negative.

        holder: whose own lease is to be replaced and hence does not count against it.
        """
        mine = self._leases.get(holder) if holder else None
        leased = self._leased[thing] - (mine.bytes.get(thing, 0) if mine else 0)
        if is_place(thing):
            return self.cap(thing) - leased
        known = self._devices.get(thing)
        if known is None:
            return 0
        untouched = self._untouched[thing]
        free = known.free_bytes - max(self._reserve.get(thing, 0), self.low.get(thing, 0))
        if mine is not None:
            untouched -= mine.untouched(thing)
            free += min(mine.resident.get(thing, 0), mine.bytes.get(thing, 0))
        return min(self.cap(thing) - leased, free - untouched)

    def missing(
        self,
        need: Mapping[str, int],
        held_back: Mapping[str, int] | None = None,
        holder: str | None = None,
    ) -> Bytes:
        """What `need` lacks now per device or place; empty when it may be promised.

        held_back: what is free and others wait for.
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
        self._put(lease)
        return lease

    def free(self, holder: str) -> None:
        lease = self._leases.pop(holder, None)
        if lease is None:
            return
        for thing, count in lease.bytes.items():
            del self._holders[thing][holder]
            self._leased[thing] -= count
            self._untouched[thing] -= lease.untouched(thing)

    def keep_as_residue(self, holder: str, remaining: Mapping[str, int]) -> None:
        """The holder is gone and `remaining` bytes are not: they stay counted until they go."""
        self._put(Lease(holder, dict(remaining), dict(remaining), residue=True))

    def _put(self, lease: Lease) -> None:
        self.free(lease.holder)
        self._leases[lease.holder] = lease
        for thing, count in lease.bytes.items():
            self._holders.setdefault(thing, {})[lease.holder] = lease
            self._leased[thing] += count
            self._untouched[thing] += lease.untouched(thing)


def add(*parts: Mapping[str, int]) -> Bytes:
    """Sum of byte maps, device by device."""
    total: Bytes = {}
    for part in parts:
        for device, count in part.items():
            total[device] = total.get(device, 0) + count
    return total
