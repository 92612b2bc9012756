"""Looks at a worker from outside: are all its slots and cells there, and how soon is one free."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.asked import Refused, Talk
from tests.integration.serving import CHAT

#: Of all cells, how many a full house takes.
_SHARE = 0.6
#: Longer than all the prompts take: who was first is not to end before the last one began.
_ANSWER = 160
_QUIET_STEPS = 6


@dataclass(frozen=True)
class House:
    """streams: as many as there are slots, asked for at once. cells: tokens they held together.
    together: each had said something before the first one ended."""

    streams: int
    cells: int
    together: bool


@dataclass(frozen=True)
class Freed:
    """From dropping one of as many streams as there are slots: seconds until its slot was free, and
    until the first token of one that waited for a slot; steps: the former, in steps of `step_s`."""

    seconds: float
    next_s: float
    step_s: float

    @property
    def steps(self) -> float:
        return self.seconds / self.step_s


async def full_house(talk: Talk) -> House:
    """Fill every slot and most cells. What leaked would make somebody wait."""
    await talk.ask(_body("Hello", 1))
    worker = await talk.worker()
    slots, cells = worker["slots"], worker["facts"]["kv_cells"]
    words = max(8, int(cells * _SHARE / slots) - _ANSWER - 60)
    firsts: list[float] = []
    ends: list[float] = []
    held = 0

    async def one(number: int) -> None:
        nonlocal held
        body = _body(f"{number} " + "word " * words, _ANSWER, ignore_eos=True, temperature=1)
        lines = _Lines()
        answer = await talk.read(body, lines.note)
        firsts.append(lines.at[0])
        ends.append(lines.at[-1])
        held += answer.prompt_tokens + answer.tokens

    await asyncio.gather(*(one(n) for n in range(slots)))
    await talk.until_idle()
    return House(slots, held, max(firsts) < min(ends))


async def cancelled_slot(talk: Talk) -> Freed:
    """Every slot has a stream and one is dropped; the same again while one more request waits."""
    slots = (await talk.worker())["slots"]
    streams = [_Lines() for _ in range(slots)]
    running = [
        asyncio.create_task(talk.read(_body(f"{n}: a long story", 3000, ignore_eos=True), s.note))
        for n, s in enumerate(streams)
    ]
    try:
        await _until(lambda: all(len(s.at) > 8 for s in streams))
        gaps = [b - a for a, b in itertools.pairwise(streams[1].at[-40:])]
        running[2].cancel()
        dropped = time.perf_counter()
        while (await talk.worker())["busy"] == slots:
            await asyncio.sleep(0.001)
        free_s = time.perf_counter() - dropped
        more = talk.read(_body("one more", 3000, ignore_eos=True), streams[2].note)
        running.append(asyncio.create_task(more))
        said = len(streams[2].at)
        await _until(lambda: len(streams[2].at) > said)
        waiting = _Lines()
        asked = asyncio.create_task(talk.read(_body("Hi", 1, ignore_eos=True), waiting.note))
        said = len(streams[1].at)
        await _until(lambda: len(streams[1].at) > said + _QUIET_STEPS)
        if waiting.at:
            raise Refused("there was a slot for one more than there are slots")
        running[0].cancel()
        dropped = time.perf_counter()
        await asked
        return Freed(free_s, waiting.at[0] - dropped, median(gaps))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await talk.until_idle()


class _Lines:
    """When contents came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def note(self) -> None:
        self.at.append(time.perf_counter())


async def _until(condition: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Refused("it did not come to pass")
        await asyncio.sleep(0.002)


def _body(text: str, tokens: int, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": text}]
    return {"model": CHAT, "messages": said, "max_tokens": tokens, "temperature": 0} | more
