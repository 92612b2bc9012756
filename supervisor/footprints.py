"""What models really took: peaks per model file, options, backend version and device.

A life of a worker is looked at when it is ready, while it works and when an answer ends; its peak
is kept in the registry, and the next admission counts with it instead of the estimate. RAM is what
only the end of the process frees (anonymous memory, less what it keeps besides while there is
room) plus the weights it has mapped; an accelerator's bytes are those of our pids.

Light use shows less than heavy use takes, so what was learned never counts for less than weights,
keys and values do by arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.supervisor.budget import Bytes
from uml.supervisor.placement import Demand, Placement

if TYPE_CHECKING:
    from uml.supervisor.registry import Registry

#: Lives that are remembered; the largest of them counts, so that one odd life is forgotten again.
LIVES = 5
#: A peak is written down again when it has grown by this share.
_WORTH_WRITING = 0.01
#: Seconds between two looks at a worker whose answers are short.
_PAUSE_S = 0.2


def largest(lives: list[Bytes]) -> Bytes:
    """The peak per device over all lives."""
    return {d: max(life.get(d, 0) for life in lives) for d in sorted({d for x in lives for d in x})}


def floor(demand: Demand, placed: Placement) -> Bytes:
    """Weights, keys and values on each device: what no measurement may talk away."""
    beside = demand.process_bytes + demand.compute_bytes
    return {
        d: max(0, count - (demand.each_bytes if d in placed.devices else beside))
        for d, count in placed.bytes.items()
    }


def ram_of(held: Bytes, reported: Mapping[str, int]) -> Bytes:
    """held: as devices and kernel count it. reported: by the worker; `mapped` weights are needed
    and not anonymous, `parked` states are anonymous and can be done without, and what is `unused`
    so far is going to be taken when there is more to do."""
    beside = reported.get("mapped", 0) + reported.get("unused", 0) - reported.get("parked", 0)
    ram = held.get("ram", 0) + beside
    return {**held, "ram": max(0, ram)}


@dataclass
class _Life:
    content_hash: str
    key: str
    before: list[Bytes]
    peak: Bytes
    written: Bytes
    looked_at: float


class Footprints:
    """Owner of the peaks of running workers. version: of a backend as it is installed."""

    def __init__(
        self,
        registry: Registry,
        version: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._version, self._clock = registry, version, clock
        self._lives: dict[str, _Life] = {}

    def learned(self, content_hash: str, backend: str, options: Mapping[str, Any]) -> Bytes | None:
        """Peak per device of this file with these options (placement included); None = never
        measured."""
        lives = self._registry.footprint(content_hash, self._key(backend, options))
        return largest(lives) if lives else None

    def begin(
        self, worker: str, content_hash: str, backend: str, options: Mapping[str, Any], held: Bytes
    ) -> None:
        """A worker is ready, holding that."""
        key = self._key(backend, options)
        before = (self._registry.footprint(content_hash, key) or [])[1 - LIVES :]
        life = _Life(content_hash, key, before, dict(held), {}, self._clock())
        self._lives[worker] = life
        self._write(life)

    def lives(self, worker: str) -> bool:
        """Whether it is ready, and its peak looked for."""
        return worker in self._lives

    def due(self, worker: str) -> bool:
        """Whether the last look at it is a while ago."""
        life = self._lives.get(worker)
        return life is not None and self._clock() - life.looked_at >= _PAUSE_S

    def look(self, worker: str, held: Bytes) -> None:
        """It holds that now."""
        life = self._lives.get(worker)
        if life is None:
            return
        life.looked_at = self._clock()
        life.peak = largest([life.peak, held])
        grown = (n - life.written.get(d, 0) > n * _WORTH_WRITING for d, n in life.peak.items())
        if any(grown):
            self._write(life)

    def end(self, worker: str, *, leaked: bool = False) -> None:
        """Its life is over. leaked: it was ended for growing, which nobody should count with."""
        life = self._lives.pop(worker, None)
        if life is None:
            return
        if leaked:
            self._registry.record_footprint(life.content_hash, life.key, life.before)
        elif life.peak != life.written:
            self._write(life)

    def _write(self, life: _Life) -> None:
        life.written = dict(life.peak)
        lives = [*life.before, life.written]
        self._registry.record_footprint(life.content_hash, life.key, lives)

    def _key(self, backend: str, options: Mapping[str, Any]) -> str:
        said = json.dumps([backend, self._version(backend), options], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]
