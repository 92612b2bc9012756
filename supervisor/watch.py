"""Watches over workers: signs of life, stalled loads, memory beyond the lease, residue.

Sleeps without a timer while there is nothing to watch, so that an idle supervisor uses no CPU.
Its own lateness is taken off every deadline: a supervisor that was stopped for a minute must not
find all its workers dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uml.protocol import messages
from uml.protocol.errors import LoadFailed, Stalled, WorkerDied
from uml.supervisor.admission import size
from uml.supervisor.machine import process_memory
from uml.supervisor.states import State

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool

_LOADING_S = 0.1
_CALM_S = 1.0
#: RAM that a load may take beyond its lease: allocators round, libraries differ by version.
_SLACK_BYTES = 64 << 20
_SLACK_SHARE = 0.1


@dataclass
class Vital:
    """What is known of a worker's life. moved_at: when it last got anywhere. pieces: of output
    that it gave; of text, a token each as a rule. answered: requests; looked_after: of which so
    many when its memory was last looked at."""

    moved_at: float
    hello_at: float | None = None
    load_started: float | None = None
    ready_at: float | None = None
    load_s: float | None = None
    stage: str = ""
    fraction: float | None = None
    busy: int = 0
    progress: int = -1
    pieces: int = 0
    oom_kills: int = 0
    answered: int = 0
    looked_after: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)

    def beat(self, beat: messages.Beat, now: float) -> None:
        """Take in a sign of life; it is progress only if its counter grew or nothing is to do."""
        if beat.progress != self.progress or (self.ready_at and not beat.busy):
            self.moved_at = now
        self.progress, self.busy = beat.progress, beat.busy
        self.reported = beat.memory or self.reported


class Watch:
    """One task that looks at all workers, ten times a second while one loads, else once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    def wake(self) -> None:
        """There is something to watch (again)."""
        self._wake.set()

    async def _run(self) -> None:
        pool = self._pool
        while True:
            self._wake.clear()
            pause = self._pause()
            before = pool.now()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            late = max(0.0, pool.now() - before - pause) if pause else 0.0
            self._look(late if late > _CALM_S else 0.0)
            pool.look_at_residue()
            pool.pressure.look()
            pool.crew.keep_book()

    def _pause(self) -> float | None:
        """Seconds until the next look; None when there is nothing to look at."""
        scheduler = self._pool.scheduler
        loading = any(w.state is State.LOADING for w in scheduler.workers.values())
        if loading or (self._pool.pressure.near and scheduler.workers):
            return _LOADING_S
        residue = any(lease.residue for lease in scheduler.budget.leases.values())
        return _CALM_S if scheduler.workers or residue else None

    def _look(self, late_s: float) -> None:
        pool, now = self._pool, self._pool.now()
        for state in list(pool.scheduler.workers.values()):
            worker, vital = pool.crew.workers.get(state.id), pool.crew.vitals.get(state.id)
            if worker is None or vital is None or state.state is State.KILLING:
                continue
            worker.heard_at += late_s
            vital.moved_at += late_s
            name = state.model or state.backend
            still = now - vital.moved_at
            overdue, stall = pool.config.beat_overdue_s, pool.config.load_stall_s
            if vital.hello_at and now - worker.heard_at > overdue and still > overdue:
                pool.failures.failed(
                    state.id,
                    WorkerDied(f"the worker of {name} gave no sign of life for {overdue:g} s"),
                    died=True,
                )
            elif state.state in (State.STARTING, State.LOADING) and still > stall:
                stage = vital.stage or "its start"
                pool.failures.failed(
                    state.id, LoadFailed(f"loading {name} got nowhere for {stall:g} s at {stage}")
                )
            elif state.busy and still > stall:
                pool.failures.failed(state.id, Stalled(f"{name} produced nothing for {stall:g} s"))
            elif state.state is State.LOADING and state.need:
                self._within_lease(state.id, name, state.need.bytes)
            elif state.busy or vital.answered != vital.looked_after:
                pool.look_at_footprint(state.id)

    def _within_lease(self, worker_id: str, name: str, lease: dict[str, int]) -> None:
        """A load that takes more than it was granted endangers everybody: it is ended."""
        pids = self._pool.crew.workers[worker_id].pids()
        used = self._pool.machine.used_by(pids) | {"ram": process_memory(pids).rss}
        for device, count in used.items():
            granted = lease.get(device, 0)
            slack = max(_SLACK_BYTES, int(granted * _SLACK_SHARE)) if device == "ram" else 0
            if count > granted + slack:
                self._pool.failures.failed(
                    worker_id,
                    LoadFailed(
                        f"loading {name} was ended: it took {size(count)} of {device}, "
                        f"{size(granted)} were granted"
                    ),
                )
                return
