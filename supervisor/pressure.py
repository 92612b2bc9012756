"""Sees to it that we are good neighbours: `relief` decides, here it is carried out.

Looked at whenever `Watch` looks at the workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from uml.protocol.errors import WorkerDied
from uml.supervisor.admission import size
from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.relief import PRESSED, Growth, Holder, braked, marks, relief
from uml.supervisor.states import State, WorkerState

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool


class Pressure:
    """Owner of what is known of each worker's growth. near: memory is short, so look often."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._growth: dict[str, Growth] = {}
        #: Device -> free bytes when it was last told that nothing of ours could help.
        self._told: Bytes = {}
        self._brakes: Bytes = {}
        self.near = False

    def measured(self, devices: Iterable[DeviceMemory]) -> None:
        """That is what there is: set the marks by it."""
        config = self._pool.config
        low, self._brakes = marks(devices, config.low_free_bytes, config.brake_bytes)
        self._pool.scheduler.budget.low = low

    def look(self) -> None:
        """Measure, and act on what is short."""
        pool = self._pool
        if not pool.scheduler.workers:
            self._growth.clear()
            self.near = False
            return
        pool.measure()
        budget, devices = pool.scheduler.budget, list(pool.scheduler.budget.devices.values())
        low = budget.low
        self.near = any(d.free_bytes < low[d.name] for d in devices)
        holders = [self._holder(w) for w in pool.scheduler.workers.values()]
        for worker, device in relief(devices, low, holders).items():
            free = size(budget.devices[device].free_bytes)
            self._send_away(worker, f"{free} of {device} free, {size(low[device])} wanted")
        if found := braked(devices, self._brakes, holders):
            self._brake(*found)
        self._tell_if_helpless(low)
        self._look_for_leaks()

    def _holder(self, worker: WorkerState) -> Holder:
        lease = self._pool.scheduler.budget.leases.get(worker.id)
        vital = self._pool.crew.vitals.get(worker.id)
        need = worker.need
        pinned = need is not None and need.pinned
        load_s = (vital.load_s if vital else None) or (need.load_s if need else None)
        return Holder(
            worker.id,
            lease.resident if lease else {},
            idle=not worker.busy and not pinned and worker.state in (State.READY, State.STANDBY),
            load_s=load_s,
            leaving=worker.state is State.KILLING,
        )

    def _send_away(self, worker: str, why: str) -> None:
        pool = self._pool
        model = pool.scheduler.workers[worker].model
        pool.events.emit("pressure.relieved", "warning", worker=worker, model=model, reason=why)
        pool.feed(pool.scheduler.on_retire(worker, f"memory is short: {why}", pool.now()))

    def _brake(self, worker: str, device: str) -> None:
        pool = self._pool
        state = pool.scheduler.workers.get(worker)
        if state is None or state.state is State.KILLING:
            return
        free = size(pool.scheduler.budget.devices[device].free_bytes)
        name = state.model or state.backend
        why = f"{name} was ended before {device} ran out: {free} were free"
        pool.events.emit("pressure.braked", "error", worker=worker, model=state.model, reason=why)
        pool.failures.failed(worker, WorkerDied(why), died=True)

    def _tell_if_helpless(self, low: Bytes) -> None:
        """Loads are refused from here on: say so once."""
        for d in self._pool.scheduler.budget.devices.values():
            if d.free_bytes >= low[d.name] * PRESSED:
                self._told.pop(d.name, None)
            elif d.name not in self._told:
                self._told[d.name] = d.free_bytes
                fields = {"device": d.name, "free": d.free_bytes, "low": low[d.name]}
                self._pool.events.emit("pressure.low", "warning", **fields)

    # --- leaks -----------------------------------------------------------------------------

    def note(self, worker: str, requests: int, busy: int, held: Bytes) -> None:
        """A worker that is ready holds that, after so many requests."""
        if self._pool.config.leak_limit_bytes:
            self._growth.setdefault(worker, Growth()).note(requests, busy, held)

    def _look_for_leaks(self) -> None:
        pool, limit = self._pool, self._pool.config.leak_limit_bytes
        for worker, growth in list(self._growth.items()):
            state = pool.scheduler.workers.get(worker)
            if state is None or state.state is State.KILLING:
                del self._growth[worker]
            elif state.state is State.READY and not state.busy and (leak := growth.leak(limit)):
                why = (
                    f"grew from {size(leak.before)} to {size(leak.after)} of {leak.device} over "
                    f"{leak.requests} requests at equal load"
                )
                fields = {"worker": worker, "model": state.model, "reason": why}
                pool.events.emit("worker.recycled", "warning", **fields)
                pool.footprints.end(worker, leaked=True)
                pool.feed(pool.scheduler.on_retire(worker, f"recycled: it {why}", pool.now()))
