"""May a model come in, and who would have to leave: reads only, the scheduler decides.

Places (`max_loaded`, groups, conflicts) are counted like bytes of a device: a loaded model has one
of each that it needs until it is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from uml.protocol.errors import Conflict, DoesNotFit, UmlError, Unavailable
from uml.supervisor.budget import LOADED, Budget, Bytes, is_place
from uml.supervisor.claims import Claims
from uml.supervisor.eviction import Candidate, pick_victims
from uml.supervisor.fleet import COMING, Fleet
from uml.supervisor.forecast import Forecast
from uml.supervisor.queues import Line, Queues
from uml.supervisor.states import Limits, Need, State, WorkerState

#: Never, as a time to come.
NEVER = math.inf
#: When to look again whether somebody else has given memory back, which cannot be foreseen.
_OTHERS_S = 10.0


class Admission:
    """Questions about room."""

    def __init__(
        self,
        budget: Budget,
        limits: Limits,
        fleet: Fleet,
        queues: Queues,
        claims: Claims,
        forecast: Forecast,
    ) -> None:
        self._budget, self._limits, self._forecast = budget, limits, forecast
        self._fleet, self._queues, self._claims = fleet, queues, claims

    def wants(self, need: Need) -> Bytes:
        """What the loaded model holds: bytes and places."""
        places = [*need.places, *([LOADED] if self._limits.max_loaded else [])]
        return need.bytes | dict.fromkeys(places, 1)

    def turn_s(self, need: Need) -> float:
        """Seconds until a request that comes now would get its turn, as far as can be told."""
        return self._forecast.turn_s(need, self.wants(need))

    def missing(self, need: Need, holder: str | None) -> Bytes:
        """What the loaded model lacks now; claims that rank before it keep what they wait for."""
        wants = self.wants(need)
        return self._budget.missing(wants, self._held_back(need.model, wants), holder)

    def process_fits(self, model: str, process_bytes: Bytes) -> bool:
        """Whether a process that only imports its library may start already, for `model`."""
        return not self._budget.missing(process_bytes, self._held_back(model, process_bytes))

    def room(self, device: str) -> int:
        """Bytes of a device that a newcomer may be promised now."""
        held = self._held_back("", [device]).get(device, 0)
        return self._budget.available(device) - held

    def price(self, device: str, count: int) -> tuple[float, ...]:
        """What room for `count` bytes takes, in an order: nothing; idle models, the later the last
        of them was used the dearer; or running answers, with what others wait for there already."""
        short = count - self.room(device)
        if short <= 0:
            return (0.0,)
        holders = self._budget.holders(device)
        idle = [w for w in self._holders([device]) if self._is_idle(w)]
        for worker in sorted(idle, key=lambda w: w.used_at):
            short -= holders[worker.id].bytes[device]
            if short <= 0:
                return (1.0, worker.used_at)
        lines = (self._queues.lines[model] for model in self._queues.waiting_for([device]))
        return (2.0, float(sum(line.need.bytes.get(device, 0) for line in lines)))

    def _is_idle(self, worker: WorkerState) -> bool:
        """It may leave at once, for anybody."""
        return (
            worker.state is State.READY
            and not worker.busy
            and not worker.claimed_by
            and not _stays(worker)
            and worker.model not in self._queues.lines
        )

    def victims(self, line: Line, short: Bytes, now: float) -> tuple[list[str] | None, float]:
        """Who leaves now so that `short` comes free, None if that cannot be yet; and when to ask
        again, if nothing happens before."""
        candidates, later = [], NEVER
        for worker in self._holders(short):
            at = self._may_leave_at(worker, line)
            if at <= now:
                candidates.append(self._candidate(worker))
            else:
                later = min(later, at)
        chosen = pick_victims(short, candidates)
        return (None if chosen is None else [c.worker for c in chosen]), later

    def plan(self, need: Need, *, swap: bool = False) -> tuple[bool, list[dict[str, Any]], str]:
        """What `need` would set off if it were urgent: (possible, who leaves, why not)."""
        workers, leases = self._fleet.workers, self._budget.leases
        if not self._budget.fits_empty(need.bytes):
            return False, [], self.does_not_fit(need).message
        serving = self._fleet.serving.get(need.model)
        if swap:
            others = [w for w in workers.values() if w.need and w.model != need.model]
            chosen = [w.id for w in others if not _stays(w)]
        elif serving is not None and serving.state is State.READY:
            return True, [], f"{need.model} is loaded"
        elif not self.could_fit(need):
            return False, [], self.no_room(need).message
        else:
            short = self.missing(need, serving.id if serving else None)
            able = [w for w in self._holders(short) if self._may_ever_leave(w, need.model)]
            chosen = [c.worker for c in pick_victims(short, map(self._candidate, able)) or ()]
        victims = [
            {
                "model": workers[w].model,
                "bytes": leases[w].on_devices() if w in leases else {},
                "busy": len(workers[w].busy),
            }
            for w in chosen
        ]
        return True, victims, ""

    def could_fit(self, need: Need) -> bool:
        """Whether waiting helps: would it fit if everything of ours that may leave had left?"""
        short = self._budget.missing(self.wants(need))
        for thing, lacks in short.items():
            holders = self._budget.holders(thing)
            leaving = (w for w in self._holders([thing]) if w.model == need.model or not _stays(w))
            if sum(holders[w.id].bytes[thing] for w in leaving) < lacks:
                return False
        return True

    def moving(self, things: Iterable[str]) -> bool:
        """Whether a load or a release of ours changes these just now: a device and the processes on
        it cannot be asked in one instant, so what is free is not known well enough for a no."""
        return any(
            w.state is State.KILLING or (w.leased and w.state in COMING)
            for w in self._holders(things)
        )

    def does_not_fit(self, need: Need) -> UmlError:
        """422: not even on the empty machine, with the arithmetic."""
        caps = ", ".join(
            f"needs {size(b)} of {d}, which can give {size(self._budget.cap(d))}"
            for d, b in need.bytes.items()
        )
        why = f" ({need.arithmetic})" if need.arithmetic else ""
        return DoesNotFit(
            f"{need.model} does not fit on this machine even with nothing else loaded: "
            f"{caps}{why}. A smaller context or a smaller quantisation may fit.",
            param="model",
        )

    def no_room(self, need: Need) -> UmlError:
        """409 when pins are in the way, else 503: others hold the memory."""
        lacks = self._budget.missing(self.wants(need))
        pinned = sorted({w.model for w in self._holders(lacks) if _stays(w) and w.model})
        if pinned and any(is_place(thing) for thing in lacks):
            return Conflict(
                f"{need.model} cannot be loaded beside what is pinned ({', '.join(pinned)}): "
                "max_loaded, a group or conflicts_with forbids it"
            )
        short = ", ".join(
            f"{d}: needs {size(b)}, {size(max(0, self._budget.available(d)))} can be promised"
            for d, b in need.bytes.items()
        )
        if pinned:
            return Conflict(
                f"no room for {need.model} beside what is pinned ({', '.join(pinned)}): {short}"
            )
        return Unavailable(
            f"no room for {need.model} now, and nothing of ours to unload: {short}",
            retry_after_s=max(_OTHERS_S, self.turn_s(need)),
        )

    def _held_back(self, model: str, things: Iterable[str]) -> Bytes:
        lines = self._queues.lines
        mine = lines.get(model)

        def before(other: str) -> bool:
            theirs = lines.get(other)
            first = mine and theirs and self._rank(mine) < self._rank(theirs)
            return other != model and not (first and self._is_stuck(other))

        return self._claims.held_back(things, before)

    def _is_stuck(self, claimant: str) -> bool:
        """All whom it waited for are gone, and it lacks something still, be it for others' claims:
        two that have no victims left would wait for each other."""
        claim, own = self._claims.get(claimant), self._fleet.serving.get(claimant)
        if claim is None or claim.victims:
            return False
        others = self._claims.held_back(claim.wants, lambda other: other != claimant)
        return bool(self._budget.missing(claim.wants, others, holder=own.id if own else None))

    # --- who may leave ---------------------------------------------------------------------

    def _may_leave_at(self, worker: WorkerState, line: Line) -> float:
        """From when on `worker` may be asked to leave for `line`; NEVER: not by time alone."""
        if worker.claimed_by not in (None, line.model):
            return NEVER
        if not self._may_ever_leave(worker, line.model):
            return NEVER
        if worker.state in (State.DRAINING, State.KILLING) or worker.need is None:
            return 0.0
        theirs = self._queues.lines.get(worker.need.model)
        before = theirs is not None and self._rank(theirs) < self._rank(line)
        if before:  # served before it goes, or loaded
            return NEVER
        if worker.state is not State.READY or line.urgent:
            return 0.0
        patience = line.head.since
        if line.need.priority <= worker.need.priority:
            patience += self._limits.max_wait_s
        patience = max(patience, worker.ready_at + self._residency(worker))
        if worker.busy:
            return patience
        return min(patience, worker.used_at + self._forecast.linger_s(worker.need.model))

    def _may_ever_leave(self, worker: WorkerState, model: str) -> bool:
        if worker.model == model:
            return worker.state is State.KILLING
        # What has its lease already will be ready soon.
        loading = worker.leased and worker.state in COMING
        return not _stays(worker) and not loading

    def _residency(self, worker: WorkerState) -> float:
        """How long it stays at least once loaded: half of the time at most goes into loading."""
        load_s = worker.ready_at - worker.load_at
        return min(self._limits.max_wait_s, max(self._limits.min_residency_s, load_s))

    def _rank(self, line: Line) -> tuple[bool, float, int]:
        return line.rank(self._limits.priority_s)

    def _holders(self, things: Iterable[str]) -> list[WorkerState]:
        """Workers that hold something of these, in order of their coming."""
        found = {h: None for thing in things for h in self._budget.holders(thing)}
        workers = self._fleet.workers
        return [workers[h] for h in found if h in workers]

    def _candidate(self, worker: WorkerState) -> Candidate:
        lease = self._budget.leases.get(worker.id)
        pending = worker.state in (State.DRAINING, State.KILLING)
        # A standby that nobody uses is the cheapest to lose.
        priority = worker.need.priority if worker.need else -(1 << 30)
        held = lease.bytes if lease else {}
        return Candidate(worker.id, held, len(worker.busy), worker.used_at, priority, pending)


def _stays(worker: WorkerState) -> bool:
    """Nothing makes it leave for another model."""
    pinned = worker.need is not None and worker.need.pinned
    return pinned and worker.state is not State.KILLING


def size(count: int) -> str:
    """Bytes for people: `98 MB`, `1.23 GB` (decimal, as model files are sold)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
