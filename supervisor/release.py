"""Killing a worker and seeing its memory come back: the receipt.

Reaped is not released: a driver may hand bytes back late, slowly or never. After the kill the
devices are asked again and again (at once, then after 5, 10, 20 ... ms) until what the tree held
is free; what is not back at the deadline is *residue*.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from uml.supervisor import segments
from uml.supervisor.budget import Bytes
from uml.supervisor.machine import Machine, anonymous_bytes, process_memory
from uml.supervisor.patience import Patience
from uml.supervisor.worker import Worker

#: RAM: page accounting is batched per core, and the rest of the machine does not stand still.
_RAM_SLACK = 16 << 20
_RAM_SHARE = 0.8
#: VRAM of a context that other processes keep alive is not ours to wait for.
_DEVICE_SHARE = 0.98


@dataclass(frozen=True)
class Receipt:
    """What an unload did. before, after: bytes the worker's tree held per device (RAM: anonymous
    memory, which only the end of a process frees). freed: what the device gave back, by its own
    count. ms: from the kill to the last look. verified: yes | no (residue) | unknown. swept: shared
    memory that the tree left under /dev/shm."""

    model: str
    worker: str
    reason: str
    pids: list[int]
    stuck: list[int]
    before: Bytes
    after: Bytes
    freed: Bytes
    killed_ms: float
    ms: float
    verified: str
    at: float
    swept: list[str] = field(default_factory=list)

    @classmethod
    def of_nothing(cls, model: str, worker: str, reason: str) -> Receipt:
        """For a worker whose process could not even be started."""
        return cls(model, worker, reason, [], [], {}, {}, {}, 0.0, 0.0, "yes", time.time())

    def to_map(self) -> dict[str, Any]:
        return asdict(self)


class _Ram:
    """RAM seen from the kernel's count of anonymous pages, less what all other processes have: the
    rest of the machine does not stand still. It does not either while they are looked at one after
    the other (a worker that loads takes ten megabytes in that time), so the kernel is asked before
    and after that."""

    def __init__(self, tree: Iterable[int]) -> None:
        self._tree = set(tree)
        self._before = self._beside_others()

    def _beside_others(self) -> int | None:
        first = anonymous_bytes()
        others = process_memory(pid for pid in psutil.pids() if pid not in self._tree).anon
        last = anonymous_bytes()
        return None if first is None or last is None else (first + last) // 2 - others

    def freed(self) -> int | None:
        """Bytes that came back; None where the kernel does not say."""
        now = self._beside_others()
        return None if now is None or self._before is None else self._before - now


async def release(
    worker: Worker,
    machine: Machine,
    *,
    model: str,
    reason: str,
    reported: Bytes | None = None,
    shared: Iterable[str] = (),
    deadline_s: float = 2.0,
) -> Receipt:
    """Kill `worker`'s tree and wait, at most `deadline_s`, until the devices show its memory free.

    reported: what it held on devices by its own word, where they do not tell by pid. shared: its
    shared memory, as far as it is known already.
    Raises: nothing; what went wrong stands in the receipt.
    """
    started = time.monotonic()
    pids = worker.pids()
    # Before what is held: what comes back between the two looks then counts as come back.
    free_before = {d.name: d.free_bytes for d in machine.snapshot()}
    # A worker that died by itself is gone already; its bytes may still be on their way.
    told = machine.used_by(worker.ever())
    word = {d: b for d, b in (reported or {}).items() if d in free_before}
    before = {**word, **told, "ram": process_memory(pids).anon}
    shared = {*shared, *segments.held(pids)}
    ram = _Ram(pids)
    patience = Patience()
    report = await worker.kill()
    swept = segments.sweep(shared)
    pause = 0.005
    while True:
        after = machine.used_by(report.pids)
        free = {d.name: d.free_bytes for d in machine.snapshot()}
        freed = {d: free.get(d, 0) - free_before.get(d, 0) for d in before if d != "ram"}
        ram_freed = ram.freed()
        held = before.get("ram", 0)
        # The rest of the machine gives back memory too; the receipt speaks of this worker's.
        freed["ram"] = held if ram_freed is None else min(held, max(0, ram_freed))
        back = {d: _is_back(d, b, after.get(d, 0), freed[d]) for d, b in before.items()}
        waited = patience.waited()
        if (all(back.values()) and not report.stuck) or waited > deadline_s:
            break
        # RAM of reaped processes is free by the kernel's own rule; only its count may lag.
        ram_only = all(ok for d, ok in back.items() if d != "ram") and not report.stuck
        if ram_only and waited > 0.25:
            break
        await asyncio.sleep(pause)
        pause = min(0.08, pause * 2)
    after = {d: b for d, b in after.items() if b > 0}
    if report.stuck or any(d != "ram" for d in after):
        verified = "no"
    else:
        verified = "yes" if all(back.values()) else "unknown"
    return Receipt(
        model=model,
        worker=worker.id,
        reason=reason,
        pids=list(report.pids),
        stuck=list(report.stuck),
        before=before,
        after=after,
        freed=freed,
        killed_ms=round(report.ms, 2),
        ms=round((time.monotonic() - started) * 1000, 2),
        verified=verified,
        at=time.time(),
        swept=swept,
    )


def _is_back(device: str, held: int, still: int, freed: int) -> bool:
    if device == "ram":
        return freed >= held * _RAM_SHARE - _RAM_SLACK
    return still == 0 and freed >= held * _DEVICE_SHARE


async def come_to_rest(machine: Machine, *, quiet_s: float = 0.1, deadline_s: float = 2.0) -> None:
    """Wait until accelerators have given nothing back for `quiet_s`, at most `deadline_s`: bytes of
    workers whose supervisor was killed may still be on their way, and nobody watched them go."""
    started = rested = time.monotonic()
    free: Bytes = {}
    while True:
        before, free = free, {d.name: d.free_bytes for d in machine.snapshot() if d.kind != "ram"}
        now = time.monotonic()
        if any(free[d] > before.get(d, 0) for d in free):
            rested = now
        if not free or now - rested >= quiet_s or now - started >= deadline_s:
            return
        await asyncio.sleep(quiet_s / 10)
