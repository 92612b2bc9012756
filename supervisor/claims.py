"""What models hold while others leave for them.

A claim is made at once with the decision who leaves: from then on nobody else is promised what
the victims give back, nor what is free and the claimant needs besides. Unless that was in vain:
then who ranks before the claimant need not wait for it, else each could wait for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from uml.supervisor.budget import Budget, Bytes
from uml.supervisor.states import WorkerState


@dataclass
class Claim:
    """`model` waits for `victims` (workers) to give back what it `wants` (bytes and places)."""

    model: str
    wants: Bytes
    victims: set[str]


class Claims:
    """One per model at most; a worker is in one at most. workers, serving: the fleet's tables."""

    def __init__(
        self,
        budget: Budget,
        workers: Mapping[str, WorkerState],
        serving: Mapping[str, WorkerState],
    ) -> None:
        self._budget, self._workers, self._serving = budget, workers, serving
        self._claims: dict[str, Claim] = {}
        self._on: dict[str, dict[str, Claim]] = {}

    def get(self, model: str) -> Claim | None:
        return self._claims.get(model)

    def make(self, model: str, wants: Bytes, victims: Iterable[str]) -> list[WorkerState]:
        """Claim, in place of an earlier claim; workers that are let off by that."""
        let_off = self.drop(model)
        claim = self._claims[model] = Claim(model, dict(wants), set(victims))
        for thing in wants:
            self._on.setdefault(thing, {})[model] = claim
        for worker in claim.victims:
            self._workers[worker].claimed_by = model
        return [w for w in let_off if w.claimed_by is None]

    def drop(self, model: str) -> list[WorkerState]:
        """The claim is met or given up; its victims that are still there, claimed by nobody."""
        claim = self._claims.pop(model, None)
        if claim is None:
            return []
        for thing in claim.wants:
            del self._on[thing][model]
        let_off = [self._workers[w] for w in claim.victims if w in self._workers]
        for worker in let_off:
            worker.claimed_by = None
        return let_off

    def gone(self, worker: WorkerState) -> None:
        """A victim has given back what it had."""
        if worker.claimed_by and (claim := self._claims.get(worker.claimed_by)):
            claim.victims.discard(worker.id)

    def held_back(self, things: Iterable[str], before: Callable[[str], bool]) -> Bytes:
        """What claims need of what is free now, beyond what their victims and their own processes
        bring. before: whether a model's claim counts against who asks."""
        held: Bytes = {}
        for thing in things:
            for claim in self._on.get(thing, {}).values():
                if not before(claim.model):
                    continue
                own, holders = self._serving.get(claim.model), self._budget.holders(thing)
                bring = claim.victims | ({own.id} if own else set())
                coming = sum(holders[w].bytes[thing] for w in bring if w in holders)
                held[thing] = held.get(thing, 0) + max(0, claim.wants[thing] - coming)
        return held
