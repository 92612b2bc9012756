"""May a model come in, and who would have to leave: reads only, the scheduler decides.

A view of the scheduler's own tables; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from uml.protocol.errors import Conflict, DoesNotFit, UmlError, Unavailable
from uml.supervisor.budget import Budget, Bytes, add
from uml.supervisor.eviction import Candidate, pick_victims
from uml.supervisor.states import Claim, Limits, Need, State, WorkerState


class Admission:
    """Questions about room. workers, claims: the scheduler's tables, read at each call."""

    def __init__(
        self,
        budget: Budget,
        limits: Limits,
        workers: Mapping[str, WorkerState],
        claims: Mapping[str, Claim],
    ) -> None:
        self._budget, self._limits = budget, limits
        self._workers, self._claims = workers, claims

    def missing(self, need: Need, holder: str | None) -> Bytes:
        """Bytes that the loaded model lacks now; earlier claims keep what they wait for."""
        return self._budget.missing(need.bytes, self._held_back(need.model), holder)

    def process_fits(self, need: Need) -> bool:
        """Whether a process that only imports its library may start already."""
        return not self._budget.missing(need.process_bytes, self._held_back(need.model))

    def too_many(self, model: str) -> int:
        """How many models have to leave before `model` may be loaded (`max_loaded`)."""
        if self._limits.max_loaded is None:
            return 0
        loaded = [
            w.id
            for w in self._workers.values()
            if w.need
            and self._holds_model(w, w.need)
            and (w.model != model or w.state is State.KILLING)
        ]
        # Another claim takes its victims' places as soon as they are gone.
        others = [claim for m, claim in self._claims.items() if m != model]
        leaving = {v for claim in others for v in claim.victims}
        then = len([w for w in loaded if w not in leaving]) + len(others)
        return max(0, max(len(loaded), then) + 1 - self._limits.max_loaded)

    def victims(self, need: Need, short: Bytes, *, busy: bool) -> list[str] | None:
        """Who leaves so that `short` bytes and a place come free; None when that cannot be now.

        busy: whether workers with running answers may be sent away too (by draining).
        """
        candidates = self._candidates(need.model, busy)
        chosen = pick_victims(short, candidates)
        if chosen is None:
            return None
        counted = [c for c in candidates if self._counts(c.worker)]
        over = self.too_many(need.model) - sum(c in counted for c in chosen)
        rest = sorted((c for c in counted if c not in chosen), key=Candidate.dearness)
        if over > len(rest):
            return None
        return [c.worker for c in [*chosen, *rest[: max(0, over)]]]

    def could_fit(self, need: Need) -> bool:
        """Whether waiting helps: would it fit if everything of ours that may leave had left?"""
        leaving = [w for w in self._workers.values() if not (w.need and w.need.pinned)]
        coming = add(*(self._lease(w.id) for w in leaving))
        short = self._budget.missing(need.bytes)
        pinned = sum(1 for w in self._workers.values() if w.need and w.need.pinned)
        limit = self._limits.max_loaded
        return all(b <= coming.get(d, 0) for d, b in short.items()) and (
            limit is None or pinned < limit
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
        pinned = [w.model for w in self._workers.values() if w.need and w.need.pinned and w.model]
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
            retry_after_s=10,
        )

    def _lease(self, worker: str) -> Bytes:
        lease = self._budget.leases.get(worker)
        return lease.bytes if lease else {}

    def _holds_model(self, worker: WorkerState, need: Need) -> bool:
        """It has a model's lease, not only a process's."""
        lease = self._lease(worker.id)
        return bool(lease) and all(lease.get(d, 0) >= b for d, b in need.bytes.items())

    def _counts(self, worker_id: str) -> bool:
        worker = self._workers[worker_id]
        return worker.need is not None and self._holds_model(worker, worker.need)

    def _candidates(self, model: str, busy: bool) -> list[Candidate]:
        taken = {v for m, claim in self._claims.items() if m != model for v in claim.victims}
        found = []
        for w in self._workers.values():
            if w.id in taken or (w.model == model and w.state is not State.KILLING):
                continue
            pending = w.state in (State.DRAINING, State.KILLING)
            may_go = w.state is State.READY and w.need is not None and not w.need.pinned
            if pending or w.need is None or (may_go and (busy or not w.busy)):
                # A standby that nobody uses is the cheapest to lose.
                priority = w.need.priority if w.need else -(1 << 30)
                found.append(
                    Candidate(w.id, self._lease(w.id), len(w.busy), w.used_at, priority, pending)
                )
        return found

    def _held_back(self, model: str) -> Bytes:
        """Free bytes that other claims need beyond what their victims and own leases bring."""
        held: Bytes = {}
        for other, claim in self._claims.items():
            if other == model:
                continue
            own = [w.id for w in self._workers.values() if w.model == other]
            coming = add(*(self._lease(w) for w in {*claim.victims, *own}))
            for device, count in claim.need.bytes.items():
                held[device] = held.get(device, 0) + max(0, count - coming.get(device, 0))
        return held


def size(count: int) -> str:
    """Bytes for people: `98 MB`, `1.23 GB` (decimal, as model files are sold)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
