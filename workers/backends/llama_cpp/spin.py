"""How long idle threads of OpenMP spin before they sleep: long while the cores are ours, hardly at
all while others want them too.

A step has hundreds of places where its threads wait for each other. Who sleeps there has to be
woken; who spins keeps a core that it does not use, perhaps from the very thread it waits for.
Measured on 2 cores beside a program with two busy threads of its own, SmolLM2, ms per step of one
answer (median, longest): spinning 300000 times, libgomp's own choice, 10 to 14 and 43 to 3075; 1000
times, 28 and 60; 100 times, 12 and 33. Alone: 5.6, 5.7 and 9.7.

libgomp reads its count when it is loaded, but spins 100 times instead while the process has more
threads in teams than there are CPUs (source: GCC, libgomp manual, GOMP_SPINCOUNT). So a team that
does nothing switches it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOOK_S = 0.2
#: Part of the time it had work in which the thread waited for a core: from where on others want
#: the cores, and below which they do not. Beside a busy program 0.4, beside our own supervisor and
#: clients 0.02.
_CROWDED, _FREE = 0.15, 0.05
#: Less work says nothing; and so much has to pass calmly.
_LEAST_S, _CALM_S = 0.02, 2.0

#: Seconds that a thread ran, and that it waited for a core, since it began.
Times = tuple[float, float]


class Crowd:
    """Whether others want the cores, by what one thread sees."""

    def __init__(self) -> None:
        self.crowded = False
        self._calm_s = 0.0

    def observe(self, ran_s: float, waited_s: float) -> bool:
        """What came since the last time; the verdict."""
        work_s = ran_s + waited_s
        part = waited_s / work_s if work_s else 0.0
        if part >= _CROWDED:
            self.crowded, self._calm_s = True, 0.0
        elif part >= _FREE:
            self._calm_s = 0.0
        else:
            self._calm_s += work_s
            if self._calm_s >= _CALM_S:
                self.crowded = False
        return self.crowded


def own_times() -> Times | None:
    """Of the calling thread; None where the kernel does not tell. Source: Linux,
    Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat, in nanoseconds."""
    try:
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return None
    return int(ran) / 1e9, int(waited) / 1e9


class Spin:
    """For the thread that computes, which makes it and calls `look` between steps. Where the kernel
    does not tell of crowds there always is one; without libgomp nothing is done."""

    def __init__(self, times: Callable[[], Times | None] = own_times) -> None:
        self._crowd, self._times, self._seen = Crowd(), times, times()
        self._team = _team()
        self._next = 0.0
        self._leave: threading.Event | None = None

    def look(self, now: float) -> None:
        """now: of `time.monotonic`."""
        if self._team is None or now < self._next:
            return
        self._next, crowded = now + _LOOK_S, self._crowded()
        if crowded and self._leave is None:
            leave = self._leave = threading.Event()
            args = (self._team, leave)
            threading.Thread(target=_stand, args=args, name="spin", daemon=True).start()
        elif not crowded and self._leave is not None:
            self._leave.set()
            self._leave = None

    def _crowded(self) -> bool:
        times, before = self._times(), self._seen
        if times is None or before is None:
            self._seen = times
            return True
        ran_s, waited_s = times[0] - before[0], times[1] - before[1]
        if ran_s + waited_s < _LEAST_S:
            return self._crowd.crowded
        self._seen = times
        return self._crowd.observe(ran_s, waited_s)


def _stand(team: Callable[[int], None], leave: threading.Event) -> None:
    """A team of one thread more than there are CPUs; it ends with this thread."""
    team(len(os.sched_getaffinity(0)) + 1)
    leave.wait()


def _team() -> Callable[[int], None] | None:
    """Starts a team of so many threads that does nothing, if libgomp is what the library uses."""
    try:
        gomp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        nothing: Any = ctypes.CDLL(None).free  # of no address does nothing, without Python
        start = gomp.GOMP_parallel
    except (AttributeError, OSError):
        return None
    return lambda count: start(nothing, None, count, 0)
