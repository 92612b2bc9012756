"""What a selftest will do, drawn from a seed before it begins: pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

#: When in its life a worker is killed: while its process starts, while it loads, while it answers,
#: while it finishes its last answers.
MOMENTS = ("spawn", "load", "stream", "drain")
#: How a swap comes about: a request for the other model, `swap`, `unload` and then a request.
WAYS = ("ask", "swap", "unload")

#: How long into a moment a kill comes, at most.
_INTO_S = {"spawn": 0.25, "load": 0.25, "stream": 0.15, "drain": 0.03}
_RESTART_WITHIN_S = 1.0
_KILL_SHARE = 0.5
_STRAGGLER_SHARE = 0.1
_SWAPS_PER_RESTART = 50
#: Supervisors are killed in this first part of a run, so that the last one lives long enough to
#: show whether it grows once what it keeps has filled up (some 250 swaps on the fake device).
_RESTART_SHARE = 0.2


@dataclass(frozen=True)
class Kill:
    """The end of one worker. after_s: how long into the moment. launcher: the process that holds
    the worker's namespace is killed, instead of the worker."""

    moment: str
    after_s: float
    launcher: bool


@dataclass(frozen=True)
class Round:
    """One swap. straggler: somebody asks the model that leaves once more. restart_after_s: when the
    supervisor itself is killed."""

    number: int
    way: str
    straggler: bool = False
    kill: Kill | None = None
    restart_after_s: float | None = None


def make_plan(swaps: int, seed: int, *, chaos: bool) -> list[Round]:
    """The rounds of a run; equal for equal arguments."""
    chance = random.Random(seed)
    moments, ways = _bag(MOMENTS, chance), _bag(WAYS, chance)
    early = range(max(1, int(swaps * _RESTART_SHARE)))
    restarts = set(chance.sample(early, max(1, swaps // _SWAPS_PER_RESTART))) if chaos else set()
    rounds = []
    for number in range(swaps):
        kill = None
        if chaos and chance.random() < _KILL_SHARE:
            moment = next(moments)
            kill = Kill(moment, chance.uniform(0, _INTO_S[moment]), chance.random() < 0.25)
        restart = chance.uniform(0, _RESTART_WITHIN_S) if number in restarts else None
        straggler = chance.random() < _STRAGGLER_SHARE
        rounds.append(Round(number, next(ways), straggler, kill, restart))
    return rounds


def _bag(words: tuple[str, ...], chance: random.Random) -> Iterator[str]:
    """Each word equally often, in an order that nobody knows."""
    while True:
        yield from chance.sample(words, len(words))
