"""When others take memory: who leaves, in which order; and who grows without a reason. Pure.

On each device three amounts of free memory matter. Below *low* nothing new is promised; once less
than three quarters of it is free, idle workers go, those first whose bytes cost least to bring back
(bytes freed per second of reload), until *low* is free again. Below *brake*, which only RAM has by
default, also a worker that is busy or loading is ended, one at a time, before the kernel ends whom
it likes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from uml.supervisor.budget import Bytes, DeviceMemory

#: Idle workers go when less than this share of *low* is free: counts of free memory waver.
PRESSED = 0.75
#: Kind of device -> share of it that is *low* by default, and at most so many bytes.
_LOW = {"ram": (0.03, 512 << 20), "cuda": (0.02, 256 << 20), "rocm": (0.02, 256 << 20)}
#: RAM's *brake* by default, as a share of *low*.
_BRAKE = 1 / 3
#: A load that was never measured is thought to take this long.
_LOAD_S = 10.0
#: Samples of one worker at one load that are kept, and what a judgement wants at least.
_SAMPLES, _ENOUGH = 64, 12
_REQUESTS = 32

#: How libraries say that memory ran out: ggml, CUDA, torch, C++, Python, the kernel.
OUT_OF_MEMORY = re.compile(
    r"out of( \w+)? memory|failed to allocate|unable to allocate|cannot allocate memory|"
    r"alloc(ation)? failed|bad_alloc|outofmemory|memoryerror|insufficient memory",
    re.IGNORECASE,
)


def marks(
    devices: Iterable[DeviceMemory], low: Mapping[str, int], brake: Mapping[str, int]
) -> tuple[Bytes, Bytes]:
    """(low, brake) in bytes per device; what is given counts, 0 switches off."""
    lows: Bytes = {}
    brakes: Bytes = {}
    for d in devices:
        share, most = _LOW.get(d.kind, (0.0, 0))
        lows[d.name] = low.get(d.name, min(int(d.total_bytes * share), most))
        by_default = int(lows[d.name] * _BRAKE) if d.kind == "ram" else 0
        brakes[d.name] = brake.get(d.name, by_default)
    return lows, brakes


@dataclass(frozen=True)
class Holder:
    """A worker. bytes: what its end frees per device. idle: nobody would notice. load_s: how long
    it takes to come back. leaving: its bytes are on their way."""

    worker: str
    bytes: Mapping[str, int]
    idle: bool
    load_s: float | None = None
    leaving: bool = False

    def worth(self, device: str) -> float:
        """Bytes freed per second of reload."""
        return self.bytes.get(device, 0) / max(self.load_s or _LOAD_S, 0.01)


def relief(
    devices: Iterable[DeviceMemory], low: Mapping[str, int], holders: Sequence[Holder]
) -> dict[str, str]:
    """Idle workers that go now -> the device they go for."""
    going: dict[str, str] = {}
    for d in devices:
        target = low.get(d.name, 0)
        if d.free_bytes >= target * PRESSED:
            continue
        coming = sum(h.bytes.get(d.name, 0) for h in holders if h.leaving or h.worker in going)
        short = target - d.free_bytes - coming
        able = [h for h in holders if h.idle and not h.leaving and h.worker not in going]
        for h in sorted(able, key=lambda h: (-h.worth(d.name), h.worker)):
            if short <= 0:
                break
            if h.bytes.get(d.name, 0) > 0:
                going[h.worker] = d.name
                short -= h.bytes[d.name]
    return going


def braked(
    devices: Iterable[DeviceMemory], brake: Mapping[str, int], holders: Sequence[Holder]
) -> tuple[str, str] | None:
    """(worker, device): who is ended at once, busy or not; None while bytes are on their way."""
    for d in devices:
        if d.free_bytes >= brake.get(d.name, 0):
            continue
        held = [h for h in holders if h.bytes.get(d.name, 0) > 0]
        if held and not any(h.leaving for h in held):
            return max(held, key=lambda h: (h.worth(d.name), h.worker)).worker, d.name
    return None


@dataclass(frozen=True)
class Leak:
    """A worker grew on `device` from one size to another over so many requests, at equal load."""

    device: str
    before: int
    after: int
    requests: int


@dataclass
class Growth:
    """What one worker held after how many requests, apart for each number of requests that ran at
    the time: only equal load can be compared."""

    samples: dict[int, list[tuple[int, Bytes]]] = field(default_factory=dict)

    def note(self, requests: int, busy: int, held: Bytes) -> None:
        """requests: answered so far by this worker."""
        samples = self.samples.setdefault(busy, [])
        samples.append((requests, dict(held)))
        if len(samples) > _SAMPLES:  # the whole life stays in view, less and less dense
            del samples[1:-1:2]

    def leak(self, limit: int) -> Leak | None:
        """Growth of at least `limit` bytes that went on through each quarter of the requests. What
        grew once (a cache that filled, a first large request) has not leaked."""
        for samples in self.samples.values():
            requests = samples[-1][0] - samples[0][0]
            if len(samples) < _ENOUGH or requests < _REQUESTS:
                continue
            quarters: list[list[Bytes]] = [[], [], [], []]
            for at, held in samples:
                quarters[min(3, 4 * (at - samples[0][0]) // requests)].append(held)
            if not all(quarters):
                continue
            for device in samples[-1][1]:
                low = [min(held.get(device, 0) for held in quarter) for quarter in quarters]
                steps = [b - a for a, b in itertools.pairwise(low)]
                grown = low[3] - low[0]
                if grown >= limit and min(steps) >= grown / 8:
                    return Leak(device, low[0], low[3], requests)
        return None
