"""Who has to go so that a model fits: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A worker that may be evicted. bytes: its lease. pending: it is leaving already, so its
    bytes cost nothing more. last_used: seconds on the scheduler's clock."""

    worker: str
    bytes: Mapping[str, int]
    busy: int
    last_used: float
    priority: int = 0
    pending: bool = False

    def dearness(self) -> tuple[bool, int, bool, float, str]:
        """Sorts the cheapest to lose first: who leaves anyway, low priority, idle, long unused."""
        return (not self.pending, self.priority, self.busy > 0, self.last_used, self.worker)


def pick_victims(
    missing: Mapping[str, int], candidates: Iterable[Candidate]
) -> list[Candidate] | None:
    """The cheapest candidates whose leases cover `missing` bytes on every device.

    Order: `Candidate.dearness`. A victim that the others make superfluous is let off. None when
    even all of them would not do. `missing` may be empty: then nobody goes.
    """
    short = {d: b for d, b in missing.items() if b > 0}
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=Candidate.dearness):
        if not any(b > 0 for b in short.values()):
            break
        helps = any(short.get(d, 0) > 0 and b > 0 for d, b in candidate.bytes.items())
        if not helps:
            continue
        chosen.append(candidate)
        for device, count in candidate.bytes.items():
            if device in short:
                short[device] -= count
    if any(b > 0 for b in short.values()):
        return None
    # The last ones taken may cover all alone: let off who is dearest to lose.
    for candidate in list(reversed(chosen)):
        if (
            all(b + candidate.bytes.get(d, 0) <= 0 for d, b in short.items())
            and not candidate.pending
        ):
            chosen.remove(candidate)
            for device in short:
                short[device] += candidate.bytes.get(device, 0)
    return chosen
