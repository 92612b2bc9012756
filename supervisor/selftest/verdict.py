"""What a run showed: pure.

`judge` turns what was noted into checks, each with a yes or no and the figures behind it. A check
that had nothing to look at says so, and does not count as failed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from uml.supervisor.figures import percentile
from uml.supervisor.selftest.plan import MOMENTS
from uml.supervisor.selftest.saboteur import Struck
from uml.supervisor.selftest.traffic import Asked
from uml.supervisor.units import format_size

#: Swaps of a supervisor's life that are left out of the slope of its files, and how many a slope
#: takes beyond. Memory is looked at from when what the supervisor keeps has filled up.
_FIRST = 20
_ENOUGH = {"fds": 40, "rss": 60}
#: Files and bytes per swap that do not count as growth.
_SLOPE = {"fds": 0.02, "rss": 4096.0}
_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """The supervisor after a swap. life: which one it was. full: the log lines and receipts that
    it keeps have reached their limits, so that nothing it means to keep adds to its memory.
    wrong: what did not agree."""

    life: int
    fds: int
    rss: int
    full: bool = False
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Swap:
    """seconds: from asking for the other model to its first content. disturbed: something was
    killed meanwhile."""

    model: str
    way: str
    seconds: float
    disturbed: bool


@dataclass
class Log:
    """All that was noted of a run. time_up: it ended before its swaps were done, as it was told.
    restarts_s: from the start of the next supervisor until it listened. wrong: what was wrong
    beside the samples."""

    planned: int
    time_up: bool = False
    swaps: list[Swap] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    asked: Sequence[Asked] = ()
    struck: Sequence[Struck] = ()
    receipts: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    restarts_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """figures: what programs want to know, seconds and bytes."""

    checks: list[Check]
    figures: dict[str, Any]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_map(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [asdict(c) for c in self.checks]} | self.figures


def judge(log: Log) -> Verdict:
    outcomes = Counter(asked.outcome for asked in log.asked)
    complaints = [wrong for sample in log.samples for wrong in sample.wrong] + log.wrong
    kinds = {
        kind: [c for c in complaints if c.startswith(f"{kind}:")]
        for kind in ("orphans", "ledger", "residue")
    }
    known = {c for found in kinds.values() for c in found}
    fds, rss = _slopes(log.samples, "fds"), _slopes(log.samples, "rss")
    checks = [
        _swaps(log, [c for c in complaints if c not in known]),
        _requests(log.asked, outcomes),
        _answers(log.asked, outcomes),
        _release(log.receipts),
        _none("orphans", kinds["orphans"], "no process was left over"),
        _none("ledger", kinds["ledger"], "agreed with the devices after every swap"),
        _none("residue", kinds["residue"], "every byte came back"),
        _flat("fds", fds, _SLOPE["fds"], _span([s.fds for s in log.samples], str), "{:+.3f}"),
        _flat(
            "memory",
            rss,
            _SLOPE["rss"],
            _span([s.rss for s in log.samples], format_size),
            "{:+.0f} B",
        ),
    ]
    return Verdict(checks, _figures(log, outcomes, fds, rss))


def _figures(
    log: Log, outcomes: Mapping[str, int], fds: Sequence[float], rss: Sequence[float]
) -> dict[str, Any]:
    undisturbed = [s.seconds for s in log.swaps if not s.disturbed]
    disturbed = [s.seconds for s in log.swaps if s.disturbed]
    release = [r["ms"] / 1000 for r in log.receipts.values() if r["pids"]]
    return {
        "swaps": len(log.swaps),
        "swap_s": spread(undisturbed),
        "disturbed_swap_s": spread(disturbed),
        "release_s": spread(release),
        "receipts": Counter(r["verified"] for r in log.receipts.values()),
        "requests": {word: outcomes.get(word, 0) for word in ("right", "wrong", "cut", "lost")},
        "asked_again": sum(bool(asked.again) for asked in log.asked),
        "kills": {m: sum(s.moment == m for s in log.struck) for m in MOMENTS},
        "launchers_killed": sum(s.launcher for s in log.struck),
        "supervisors_killed": len(log.restarts_s),
        "restart_s": spread(log.restarts_s),
        "rss_bytes": [min(r, default=0), max(r, default=0)]
        if (r := [s.rss for s in log.samples])
        else [],
        "rss_slope": list(rss),
        "fds_slope": list(fds),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and number; empty of nothing."""
    if not values:
        return {}
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "n": len(values)}


def slope(values: Sequence[float]) -> float:
    """Growth per step: the median of the slopes between all pairs, which a few steps or outliers do
    not move. Source: Theil-Sen estimator, Sen (1968)."""
    pairs = combinations(enumerate(values), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def _slopes(samples: Sequence[Sample], what: str) -> list[float]:
    """One for every supervisor that lived long enough to tell."""
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        lives.setdefault(sample.life, []).append(sample)
    slopes = []
    for life in lives.values():
        steady = life[_FIRST:] if what == "fds" else [s for s in life if s.full]
        if len(steady) >= _ENOUGH[what]:
            slopes.append(slope([getattr(s, what) for s in steady]))
    return slopes


def _swaps(log: Log, wrong: Sequence[str]) -> Check:
    count, early = len(log.swaps), ", then the time was up" if log.time_up else ""
    ok = count > 0 and (count == log.planned or log.time_up) and not wrong
    return Check("swaps", ok, f"{count} of {log.planned}{early}{_some(wrong)}")


def _requests(asked: Sequence[Asked], outcomes: Mapping[str, int]) -> Check:
    lost = [a.detail for a in asked if a.outcome == "lost"]
    text = f"{len(asked)}: {len(asked) - len(lost) - outcomes['cut']} answered"
    if outcomes["cut"]:
        text += f", {outcomes['cut']} failed after their first byte and said so"
    return Check("requests", bool(asked) and not lost, f"{text}, {len(lost)} lost{_some(lost)}")


def _answers(asked: Sequence[Asked], outcomes: Mapping[str, int]) -> Check:
    wrong = [a.detail for a in asked if a.outcome == "wrong"]
    text = f"{outcomes['right']} as when asked alone, {len(wrong)} not{_some(wrong)}"
    return Check("answers", outcomes["right"] > 0 and not wrong, text)


def _release(receipts: Mapping[Any, Mapping[str, Any]]) -> Check:
    wrong = [
        f"{r['model'] or r['worker']}, {r['reason']}: verified {r['verified']}"
        for r in receipts.values()
        if r["verified"] != "yes"
    ]
    text = f"{len(receipts)} receipts, {len(receipts) - len(wrong)} verified"
    return Check("release", bool(receipts) and not wrong, text + _some(wrong))


def _none(name: str, wrong: Sequence[str], good: str) -> Check:
    return Check(name, not wrong, f"{len(wrong)}{_some(wrong)}" if wrong else good)


def _flat(name: str, slopes: Sequence[float], limit: float, span: str, form: str) -> Check:
    if not slopes:
        return Check(name, True, f"{span}; too few swaps to tell a slope")
    worst = max(slopes)
    word = "flat" if worst <= limit else "GROWS"
    return Check(name, worst <= limit, f"{span}; {form.format(worst)} per swap: {word}")


def _span(values: Sequence[int], say: Any) -> str:
    return f"{say(min(values))} to {say(max(values))}" if values else "not looked at"


def _some(wrong: Sequence[str]) -> str:
    """The first few of what was wrong, each once."""
    each = list(dict.fromkeys(wrong))
    more = f" (and {len(each) - _SHOWN} more)" if len(each) > _SHOWN else ""
    return "".join(f"\n{one}" for one in each[:_SHOWN]) + more
