"""The run itself: swap after swap under load, killing what the plan says, looking each time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uml.protocol.errors import UmlError
from uml.supervisor.crew import RECEIPTS
from uml.supervisor.events import KEPT
from uml.supervisor.selftest.audit import audit, growth, look, marked, residue, settled
from uml.supervisor.selftest.house import Broken, House
from uml.supervisor.selftest.plan import Kill, Round
from uml.supervisor.selftest.questions import Question
from uml.supervisor.selftest.saboteur import Saboteur
from uml.supervisor.selftest.traffic import Traffic
from uml.supervisor.selftest.verdict import Log, Sample, Swap

CLIENTS = 2
#: A swap that has not come to rest by then never will; loads of large models take a while.
_SETTLE_S = 180.0
_STRIKE_S = 10.0
#: Processes of a supervisor that was killed may take this long to go where there are namespaces.
_GONE_S = 5.0
_POLL_S = 0.02


class Drill:
    """house: not started yet. tell: told how many swaps are done. limit_s: begin no further swap
    after this time."""

    def __init__(
        self,
        house: House,
        questions: Mapping[str, Sequence[Question]],
        plan: Sequence[Round],
        seed: int,
        tell: Callable[[int], None],
        limit_s: float = math.inf,
    ) -> None:
        self._house, self._plan, self._tell = house, plan, tell
        self._limit_s = limit_s
        self._traffic = Traffic(house, questions, random.Random(seed), wanted=house.models[0])
        self._saboteur = Saboteur(house, self._traffic)
        self._missed: list[Kill] = []
        self._receipts: dict[Any, Mapping[str, Any]] = {}
        self.log = Log(len(plan))

    async def run(self) -> Log:
        """All of it; what went wrong stands in the log. Raises: UmlError when it cannot begin."""
        log, traffic = self.log, self._traffic
        log.receipts, log.asked, log.struck = self._receipts, traffic.done, self._saboteur.struck
        await self._house.start()
        try:
            await traffic.learn()
            for model in self._house.models:
                if not traffic.asks(model):
                    raise Broken(f"{model} answers none of the questions clearly")
            traffic.start(CLIENTS)
            try:
                await self._settle(traffic.wanted)
                end = time.monotonic() + self._limit_s
                for number, round in enumerate(self._plan):
                    log.time_up = time.monotonic() > end
                    if log.time_up:
                        break
                    await self._round(round)
                    self._tell(number + 1)
                await traffic.stop()
                await self._empty()
            except Broken as e:
                log.wrong.append(e.message)
        finally:
            await traffic.abandon()
            await self._end()
        return log

    async def _round(self, round: Round) -> None:
        house, traffic = self._house, self._traffic
        old = traffic.wanted
        new = next(m for m in house.models if m != old)
        begun, kills, before = time.monotonic(), traffic.kills, len(traffic.done)
        kill = round.kill or (self._missed.pop(0) if self._missed else None)
        strike = asyncio.create_task(self._saboteur.strike(kill)) if kill else None
        restart = None
        if round.restart_after_s is not None:
            restart = asyncio.create_task(self._restart(round.restart_after_s))
        traffic.wanted = new
        try:
            if round.way == "swap":
                await traffic.order("swap", new)
            elif round.way == "unload":
                await traffic.order("unload", old)
            if round.straggler:
                traffic.ask_once(old)
            if restart:
                await restart
            await self._settle(new)
            if strike and kill:
                if not await self._struck(strike, kill):
                    self._missed.append(kill)
                await self._settle(new)
        finally:
            for task in filter(None, (strike, restart)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        first = [
            asked.first_at
            for asked in traffic.done[before:]
            if asked.model == new and asked.first_at and asked.begun >= begun
        ]
        disturbed = traffic.kills > kills or round.straggler
        self.log.swaps.append(Swap(new, round.way, min(first) - begun, disturbed))
        await self._look()

    async def _struck(self, strike: asyncio.Task[None], kill: Kill) -> bool:
        """Whether the kill of this round was done; one in mid-answer may come yet."""
        wait_s = _STRIKE_S if kill.moment == "stream" else 0.0
        done, _ = await asyncio.wait((strike,), timeout=wait_s)
        if done:
            strike.result()
        return bool(done)

    async def _restart(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._note_receipts()
        self._traffic.kills += 1
        self._house.kill()
        # Without namespaces the next start ends what is left; the look after this swap sees it.
        for _ in range(int(_GONE_S / _POLL_S)):
            if not marked(self._house.home):
                break
            await asyncio.sleep(_POLL_S)
        started = time.monotonic()
        await self._house.start()
        self.log.restarts_s.append(time.monotonic() - started)

    async def _settle(self, model: str | None) -> None:
        """Until `model` alone is loaded, nobody waits for another one, and it has answered.

        Raises: Broken.
        """
        status: Mapping[str, Any] = {"workers": [], "waiting": {}, "residue": []}
        traffic, answered = self._traffic, len(self._traffic.done)
        # Counted in looks, not by the clock: a machine that slept has lost no time.
        for _ in range(int(_SETTLE_S / _POLL_S)):
            with contextlib.suppress(UmlError):
                status = await self._house.client.status()
                self._take(status)
                others = any(a.model != model for a in traffic.running.values())
                fresh = model is None or any(
                    a.model == model and a.first_at for a in traffic.done[answered:]
                )
                if settled(status, model) and not others and fresh:
                    return
            await asyncio.sleep(_POLL_S)
        self.log.wrong += residue(status)
        states = [f"{w['model']} {w['state']}" for w in status["workers"]]
        raise Broken(
            f"no rest within {_SETTLE_S:.0f} s: wanted {model}, there are {states}, "
            f"waiting {dict(status['waiting'])}"
        )

    async def _look(self) -> None:
        status = await self._house.client.status()
        self._take(status)
        wrong = audit(status, look(self._house.home, self._house.pid))
        fds, rss = growth(self._house.pid)
        receipts = sum(life == self._house.life for life, _ in self._receipts)
        full = receipts >= RECEIPTS and self._house.lines() >= KEPT
        self.log.samples.append(Sample(self._house.life, fds, rss, full, tuple(wrong)))

    def _take(self, status: Mapping[str, Any]) -> None:
        for receipt in status["receipts"]:
            self._receipts[self._house.life, receipt["worker"]] = receipt

    async def _note_receipts(self) -> None:
        with contextlib.suppress(UmlError):
            self._take(await self._house.client.status())

    async def _empty(self) -> None:
        """With everything unloaded, nothing may be left. Raises: Broken."""
        await self._house.client.unload(all=True)
        await self._settle(None)
        await self._look()

    async def _end(self) -> None:
        """The supervisor ends as told, and takes everybody along."""
        code = await self._house.end()
        if code not in (None, 0):
            self.log.wrong.append(f"the supervisor ended with code {code}")
        self.log.wrong += [
            f"orphans: process {pid} outlived the supervisor" for pid in marked(self._house.home)
        ]
