"""What the benchmarks found, one JSON line per measurement, appended: sections and rounds that
were measured in different windows come together in one file."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from uml.supervisor.bench import Figures

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Record:
    """One server's figures in one round of one case. run: what was measured in turn has the same,
    so that ratios are taken within a round. foreign_cores: what others used of the machine."""

    section: str
    case: str
    server: str
    run: str
    round: int
    figures: Figures
    foreign_cores: float = 0.0
    commit: str = ""
    at: float = field(default_factory=time.time)


def append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(dataclasses.asdict(record)) + "\n")


def load(path: Path) -> list[Record]:
    with path.open(encoding="utf-8") as f:
        return [Record(**json.loads(line)) for line in f if line.strip()]


def newest(records: Iterable[Record]) -> list[Record]:
    """Of each section only what the last commit that measured it found."""
    found = list(records)
    last = {r.section: r.commit for r in sorted(found, key=lambda r: r.at)}
    return [r for r in found if r.commit == last[r.section]]


def paired(
    records: Sequence[Record], ours: str, theirs: str, figure: str
) -> tuple[list[float], list[float]]:
    """The figure of both in every round that has it of both."""
    values = {
        (r.server, r.run, r.round): r.figures[figure]
        for r in records
        if not math.isnan(r.figures.get(figure, math.nan))
    }
    rounds = sorted({(run, number) for _, run, number in values})
    both = [r for r in rounds if (ours, *r) in values and (theirs, *r) in values]
    return [values[(ours, *r)] for r in both], [values[(theirs, *r)] for r in both]


def commit() -> str:
    """The checkout's commit; with a + when there are changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


class Foreign:
    """How many cores others use: all of the machine's time less ours and our children's."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        t = psutil.cpu_times()
        busy = t.user + t.nice + t.system + t.irq + t.softirq
        me, mine = psutil.Process(), 0.0
        for process in [me, *me.children(recursive=True)]:
            try:
                mine += sum(process.cpu_times()[:4])  # with those that it has buried
            except psutil.NoSuchProcess:
                pass
        return busy, mine, time.monotonic()

    def cores(self) -> float:
        """Since the last call."""
        (busy, mine, at), (busy0, mine0, at0) = self._now(), self._before
        self._before = (busy, mine, at)
        return max(0.0, (busy - busy0 - (mine - mine0)) / max(0.1, at - at0))
