"""Kills workers at chosen moments of their lives.

Two deaths of one request are one too many by the supervisor's own rules (it is quarantined). So
after a kill nobody is killed until every request that was under way then has ended: a run must
show that nothing is lost, not that rules are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from uml.protocol.errors import UmlError
from uml.supervisor.selftest.audit import token_of
from uml.supervisor.selftest.house import House
from uml.supervisor.selftest.plan import Kill
from uml.supervisor.selftest.traffic import Traffic

_POLL_S = 0.01
_STATES = {
    "spawn": ("starting", "standby"),
    "load": ("loading",),
    "stream": ("ready",),
    "drain": ("draining",),
}


@dataclass(frozen=True)
class Struck:
    """A worker that was killed. state: in which it was, as last seen."""

    moment: str
    state: str
    launcher: bool
    at: float


class Saboteur:
    def __init__(self, house: House, traffic: Traffic) -> None:
        self._house, self._traffic = house, traffic
        self._exposed: set[int] = set()
        self.struck: list[Struck] = []

    async def strike(self, kill: Kill) -> None:
        """Wait for the moment, and kill. Ends when that is done, or never: cancel it then."""
        while True:
            worker = await self._find(kill.moment)
            if worker is None:
                await asyncio.sleep(_POLL_S)
                continue
            await asyncio.sleep(kill.after_s)
            if self._strike(kill, worker):
                return

    async def _find(self, moment: str) -> Mapping[str, Any] | None:
        """A worker in that moment of its life, if somebody may be killed now."""
        if self._exposed & self._traffic.running.keys():
            return None
        try:
            status = await self._house.client.status()
        except UmlError:  # the supervisor was killed: the next one is asked
            await self._house.up()
            return None
        for worker in status["workers"]:
            there = worker["state"] in _STATES[moment] and worker["pid"]
            if there and (moment != "stream" or worker["busy"]):
                return dict(worker)
        return None

    def _strike(self, kill: Kill, worker: Mapping[str, Any]) -> bool:
        pid, launcher = worker["pid"], False
        if kill.launcher:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(pid).ppid()
                if token_of(parent, self._house.home):
                    pid, launcher = parent, True
        if not token_of(pid, self._house.home):
            return False  # it went by itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._exposed = set(self._traffic.running)
            self._traffic.kills += 1
            struck = Struck(kill.moment, worker["state"], launcher, time.monotonic())
            self.struck.append(struck)
            return True
        return False
