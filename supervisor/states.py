"""The scheduler's words: states, needs, actions, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from uml.protocol.errors import UmlError
from uml.supervisor.budget import Bytes


class State(StrEnum):
    """STARTING: the process imports its library. STANDBY: imported, waits for a model or for
    memory. LOADING, READY: as they say. DRAINING: no new work, leaves when its answers are
    complete. KILLING: being killed and its memory awaited; there is no way back."""

    STARTING = "starting"
    STANDBY = "standby"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    KILLING = "killing"


@dataclass(frozen=True)
class Need:
    """What a model wants. bytes: lease per device for the loaded model; process_bytes: lease of
    a process that has only imported its library. places: what at most so many models may have at
    once (`budget.place_of`). keep_alive_s: < 0 means for ever. cores: that it can use, None = all.
    load_s: how long it took to load before. options: every number the worker will be told."""

    model: str
    backend: str
    bytes: Bytes
    process_bytes: Bytes
    n_ctx: int = 0
    keep_alive_s: float = 300.0
    pinned: bool = False
    priority: int = 0
    places: tuple[str, ...] = ()
    cores: int | None = None
    load_s: float | None = None
    arithmetic: str = ""
    options: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Spawn:
    worker: str
    backend: str


@dataclass(frozen=True)
class Prepare:
    """Begin with what of the load needs no lease."""

    worker: str
    model: str


@dataclass(frozen=True)
class Load:
    """threads: cores it has for now."""

    worker: str
    need: Need
    threads: int = 1


@dataclass(frozen=True)
class Threads:
    """From now on the worker computes with so many threads."""

    worker: str
    threads: int


@dataclass(frozen=True)
class Kill:
    worker: str
    reason: str


@dataclass(frozen=True)
class Grant:
    request: int
    worker: str


@dataclass(frozen=True)
class Refuse:
    request: int
    error: UmlError


@dataclass(frozen=True)
class SetTimer:
    name: str
    at: float


@dataclass(frozen=True)
class Tell:
    """A decision worth a log line, with its reason."""

    event: str
    fields: dict[str, Any]


Action = Spawn | Prepare | Load | Threads | Kill | Grant | Refuse | SetTimer | Tell


@dataclass
class Limits:
    """Shared by all parts of the scheduler.

    max_loaded: models at once, None = as many as fit. cores: that all share, None = they are not
    counted. queue: waiting requests. max_wait_s: how long newer work may keep a busy model in place
    while another waits for its room. min_residency_s: how long a busy model stays at least, once
    loaded. linger_s: how long it has to be idle before it leaves for another: its clients' time to
    ask again. priority_s: what one step of priority is worth in seconds of waiting. standby:
    backends of which a process with the library imported is kept ready, and what that takes.
    standby_auto: so is one of a backend whose model had to leave for another, as it is likely to
    be wanted again; for `spare_s`, if nobody uses it."""

    max_loaded: int | None = None
    cores: int | None = None
    queue: int = 512
    max_wait_s: float = 8.0
    min_residency_s: float = 2.0
    linger_s: float = 0.05
    priority_s: float = 10.0
    standby: Mapping[str, Bytes] = field(default_factory=dict)
    standby_auto: bool = False
    standby_delay_s: float = 0.25
    spare_s: float = 300.0

    def adopt(self, other: Limits) -> None:
        """Be as the other ones from now on."""
        self.__dict__.update(other.__dict__)


@dataclass
class WorkerState:
    """A worker as the scheduler sees it. leased: it has its model's lease, not only a process's.
    cores: that it holds now, 0 while it is idle; threads: what it was last told of them. alone: the
    request that has it to itself. prepared: the model that it was last told to expect.
    claimed_by: the model that waits for its room. `final`: its draining cannot be undone. load_at,
    ready_at, used_at: when its load began and ended, and a request last did. idle_timer: when its
    idleness will be looked at."""

    id: str
    backend: str
    state: State
    need: Need | None = None
    leased: bool = False
    slots: int = 0
    cores: int = 0
    threads: int = 0
    busy: set[int] = field(default_factory=set)
    alone: int | None = None
    prepared: str | None = None
    load_at: float = 0.0
    ready_at: float = 0.0
    used_at: float = 0.0
    keep_alive_s: float = 300.0
    idle_timer: float | None = None
    claimed_by: str | None = None
    final: bool = False
    reason: str = ""

    @property
    def model(self) -> str | None:
        return self.need.model if self.need else None

    def takes(self, waiter: Waiter) -> bool:
        """Whether there is room for one more request."""
        if waiter.alone:
            return not self.busy
        return self.alone is None and len(self.busy) < self.slots

    def until(self) -> float | None:
        """When idleness ends it, on the scheduler's clock; None = not by time."""
        spare = self.state is State.STANDBY and self.need is None
        if not (spare or self.state is State.READY) or self.busy or self.keep_alive_s < 0:
            return None
        return self.used_at + self.keep_alive_s


@dataclass
class Waiter:
    """A request that waits. wants_slot: False for a mere load. urgent: see `on_request`.
    alone: it runs with no other beside it. deaths: processes that died while they loaded the model
    for it."""

    request: int
    need: Need
    since: float
    wants_slot: bool = True
    urgent: bool = False
    alone: bool = False
    deaths: int = 0
