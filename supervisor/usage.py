"""What models were asked for and how quickly they answered: since the start, and by day on disk.

One owner for all of it. Counting is adding to numbers in memory, once per request or load, never
per token; what is new goes to the registry's database in one transaction every few seconds, from
a thread, and at the end. Days are the machine's own.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uml.protocol.errors import UmlError

_TABLE = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, model TEXT, what TEXT, value REAL, PRIMARY KEY (day, model, what)
) WITHOUT ROWID
"""
#: What is counted, of which sums are kept by day; the rest are times.
_COUNTS = (
    *("requests", "errors", "cancelled", "prompt_tokens", "completion_tokens", "cached_tokens"),
    *("loads", "load_failures"),
)
_CODE = "error "
#: What is new is written this often; a supervisor that is killed loses so much.
_WRITE_S = 10.0
_KEPT_DAYS = 400
#: Upper bounds of histograms, seconds and tokens per second.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SPEEDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
#: Below this many tokens a speed says little.
_FEW = 8


@dataclass
class Histogram:
    """bounds: upper ones, the last bucket has none. counts: of each bucket alone."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        return round(self.total / self.count, 4) if self.count else None

    def quantile(self, share: float) -> float | None:
        """About: where within its bucket a value lies is guessed evenly. None without values."""
        wanted, below, low = share * self.count, 0, 0.0
        if not self.count:
            return None
        for high, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return round(low + (high - low) * (wanted - below) / count, 4)
            below, low = below + count, high
        return low


@dataclass
class Tally:
    """Of one model, since the start. errors: by code. finished, failed, cancelled: requests by
    their end. wait_s: until the worker took the request; first_s: until the first output, from the
    request's arrival; speed: tokens per second from there to the end."""

    finished: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    load_failures: int = 0
    wait_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    first_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    request_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    load_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    speed: Histogram = field(default_factory=lambda: Histogram(SPEEDS))

    def to_map(self) -> dict[str, Any]:
        """For GET /status; seconds, and tokens per second of one request."""
        return {
            "requests": self.finished.total(),
            "errors": self.failed.total(),
            "cancelled": self.cancelled.total(),
            **{name: self.tokens[name] for name in _COUNTS if name.endswith("_tokens")},
            "loads": self.load_s.count,
            "load_failures": self.load_failures,
            "load_s": self.load_s.mean,
            "first_p50_s": self.first_s.quantile(0.5),
            "first_p95_s": self.first_s.quantile(0.95),
            "tokens_per_s": self.speed.mean,
        }


@dataclass
class Request:
    """One request on its way; times on the clock of `Usage`. first_at: of its first output."""

    model: str
    task: str
    came_at: float
    granted_at: float | None = None
    first_at: float | None = None


class Usage:
    """path: the registry's database. clock: any that never goes back."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        day: Callable[[], str] = lambda: time.strftime("%Y-%m-%d"),
    ) -> None:
        self._path, self._clock, self._day = path, clock, day
        self.models: dict[str, Tally] = {}
        self._new: dict[tuple[str, str, str], float] = defaultdict(float)
        self._one_at_a_time = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    # --- counting --------------------------------------------------------------------------

    def request(self, model: str, task: str) -> Request:
        """A request came."""
        return Request(model, task, self._clock())

    def finished(self, request: Request, usage: Mapping[str, int], finish: Iterable[str]) -> None:
        """It ended well, or the worker confirmed that it was cut."""
        if "cancelled" in finish:
            self.cancelled(request, usage)
            return
        now, tally = self._clock(), self._tally(request.model)
        tally.finished[request.task] += 1
        tally.request_s.add(now - request.came_at)
        self._count(request, "requests", usage)
        if request.granted_at is not None:
            tally.wait_s.add(request.granted_at - request.came_at)
        if request.first_at is None:
            return
        first = request.first_at - request.came_at
        tally.first_s.add(first)
        self._add(request.model, first_s=first, first=1)
        tokens = usage.get("completion_tokens", 0) - 1
        if tokens + 1 >= _FEW and now > request.first_at:
            tally.speed.add(tokens / (now - request.first_at))
            self._add(request.model, paced_s=now - request.first_at, paced=tokens)

    def cancelled(self, request: Request, usage: Mapping[str, int] | None = None) -> None:
        """Its client left."""
        self._tally(request.model).cancelled[request.task] += 1
        self._count(request, "cancelled", usage or {})

    def late(self, request: Request, usage: Mapping[str, int]) -> None:
        """What the worker says it did for a request whose client left."""
        self._count(request, "", usage)

    def failed(self, request: Request, error: UmlError) -> None:
        tally = self._tally(request.model)
        tally.failed[request.task] += 1
        tally.errors[error.code] += 1
        self._count(request, "errors", {})
        self._add(request.model, **{_CODE + error.code: 1})

    def loaded(self, model: str, seconds: float) -> None:
        self._tally(model).load_s.add(seconds)
        self._add(model, loads=1, load_s=seconds)

    def load_failed(self, model: str) -> None:
        self._tally(model).load_failures += 1
        self._add(model, load_failures=1)

    def _tally(self, model: str) -> Tally:
        return self.models.get(model) or self.models.setdefault(model, Tally())

    def _count(self, request: Request, end: str, usage: Mapping[str, int]) -> None:
        """A request's end and its tokens."""
        tokens = {k: n for k, n in usage.items() if k.endswith("_tokens") and n}
        self._tally(request.model).tokens.update(tokens)
        self._add(request.model, **({end: 1} if end else {}), **tokens)

    def _add(self, model: str, **values: float) -> None:
        day = self._day()
        for what, value in values.items():
            self._new[day, model, what] += value
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WRITE_S, self._begin)

    # --- on disk ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._timer = None
        self._writing = asyncio.create_task(self.write())

    async def write(self) -> None:
        """Write what is new; what cannot be written now is tried again with the next."""
        async with self._one_at_a_time:
            new, self._new = self._new, defaultdict(float)
            try:
                await asyncio.to_thread(self._save, new)
            except sqlite3.Error:
                for key, value in new.items():
                    self._new[key] += value
            self._writing = None

    async def rows(self, since: str = "", model: str | None = None) -> list[Row]:
        """See `read`; up to now."""
        await self.write()
        return await asyncio.to_thread(read, self._path, since, model)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._writing:
            await self._writing
        await self.write()

    def _save(self, new: Mapping[tuple[str, str, str], float]) -> None:
        if not new:
            return
        with contextlib.closing(sqlite3.connect(self._path, timeout=5)) as db, db:
            db.execute(_TABLE)
            db.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET value = value + excluded.value",
                [(*key, value) for key, value in new.items()],
            )
            db.execute("DELETE FROM usage WHERE day < ?", (days_ago(_KEPT_DAYS),))


@dataclass(frozen=True)
class Row:
    """A day of a model, or several together. sums: by what is counted."""

    day: str
    model: str
    sums: dict[str, float]

    def to_map(self) -> dict[str, Any]:
        """Counts: requests (that ended well), errors, cancelled, *_tokens, loads, load_failures,
        error_codes. Means: load_s, first_s (arrival to first output), tokens_per_s (of one
        request); None where nothing is known."""
        sums = self.sums

        def mean(total: str, count: str) -> float | None:
            return round(sums[total] / sums[count], 4) if sums.get(count) else None

        return {
            "day": self.day,
            "model": self.model,
            **{name: int(sums.get(name, 0)) for name in _COUNTS},
            "error_codes": {
                k.removeprefix(_CODE): int(v) for k, v in sums.items() if k.startswith(_CODE)
            },
            "load_s": mean("load_s", "loads"),
            "first_s": mean("first_s", "first"),
            "tokens_per_s": mean("paced", "paced_s"),
        }


def read(path: Path, since: str = "", model: str | None = None) -> list[Row]:
    """What a database has, the newest day first. since: "YYYY-MM-DD"."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "SELECT day, model, what, value FROM usage WHERE day >= ? AND model = ifnull(?, model)"
            " ORDER BY day DESC, model",
            (since, model),
        )
        for day, name, what, value in rows:
            found.setdefault((day, name), {})[what] = value
    return [Row(day, name, sums) for (day, name), sums in found.items()]


def together(rows: Iterable[Row], day: str = "", model: str = "") -> Row:
    """One row for several."""
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        for what, value in row.sums.items():
            sums[what] += value
    return Row(day, model, dict(sums))


def days_ago(count: int) -> str:
    """The day that begins the last `count` days, today included."""
    return time.strftime("%Y-%m-%d", time.localtime(time.time() - (count - 1) * 86400))
