"""Measures OpenAI-compatible servers side by side, interleaved, as ratios with an interval.

Absolute times say little on a machine that others use too; so every round asks each server the
same, in turn, and what counts is the ratio within a round. Prompts begin differently each time, so
that no prompt cache can serve more than the template's head.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from uml.protocol.errors import Unavailable

_numbers = itertools.count(random.randrange(10**6))
#: A server that closes a kept-alive connection is asked again, as HTTP clients do.
_TRIES = 5


@dataclass(frozen=True)
class Server:
    """One address to measure. headers: its key, say."""

    name: str
    base: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Stream:
    """One streamed answer. first_s: to the first content; gaps_s: between contents."""

    tokens: int = 0
    first_s: float = 0.0
    total_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    error: str = ""


def question(words: int = 40) -> str:
    number = next(_numbers)
    tail = " ".join(["with rivers, mountains, towns and people"] * max(1, words // 6))
    return f"Request {number}: write a long story about item {number % 97}, {tail}."


async def stream(
    session: aiohttp.ClientSession, server: Server, tokens: int, words: int = 40
) -> Stream:
    """Ask for a streamed answer of exactly `tokens` tokens."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question(words)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.perf_counter()
    for left in reversed(range(_TRIES)):
        try:
            return await _stream(session, server, body, begun)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as e:
            if not left:
                return Stream(error=f"{type(e).__name__}: {e}")
    raise AssertionError("unreachable")


async def _stream(
    session: aiohttp.ClientSession, server: Server, body: dict[str, Any], begun: float
) -> Stream:
    found = Stream()
    url = f"{server.base}/v1/chat/completions"
    async with session.post(url, json=body, headers=server.headers) as response:
        if response.status != 200:
            return Stream(error=f"{response.status}: {(await response.text())[:200]}")
        last = begun
        async for line in response.content:
            now = time.perf_counter()
            if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                continue
            event = json.loads(line[5:])
            if "error" in event:
                found.error = str(event["error"])[:200]
            if event.get("usage"):
                found.tokens = event["usage"]["completion_tokens"]
            delta = (event.get("choices") or [{}])[0].get("delta") or {}
            if delta.get("content"):
                if found.first_s:
                    found.gaps_s.append(now - last)
                else:
                    found.first_s = now - begun
                last = now
    found.total_s = time.perf_counter() - begun
    return found


def client() -> aiohttp.ClientSession:
    """A session without limits of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    )


async def load_streams(
    session: aiohttp.ClientSession, server: Server, streams: int, requests: int, tokens: int
) -> dict[str, float]:
    """`streams` clients ask `requests` times together: tokens/s, first token, gaps.

    Raises: Unavailable when a request failed: figures of a failing server mean nothing.
    """
    todo = iter(range(requests))
    done: list[Stream] = []

    async def ask() -> None:
        for _ in todo:
            done.append(await stream(session, server, tokens))

    begun = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(streams)))
    wall = time.perf_counter() - begun
    failed = [d.error for d in done if d.error]
    if failed:
        raise Unavailable(f"{server.name}: {len(failed)} of {requests} failed: {failed[0]}")
    gaps = [g for d in done for g in d.gaps_s]
    return {
        "tokens_per_s": sum(d.tokens for d in done) / wall,
        "first_p50_s": percentile([d.first_s for d in done], 50),
        "first_p99_s": percentile([d.first_s for d in done], 99),
        "gap_p50_s": percentile(gaps, 50),
        "gap_p99_s": percentile(gaps, 99),
    }


async def swap_to(session: aiohttp.ClientSession, server: Server, model: str) -> float:
    """Seconds from asking a model that is not loaded to its first token, by completion (which
    models without a chat template can do too). Raises: Unavailable."""
    body = {"model": model, "prompt": question(6), "max_tokens": 1, "temperature": 0}
    begun = time.perf_counter()
    url = f"{server.base}/v1/completions"
    async with session.post(url, json=body, headers=server.headers) as response:
        if response.status != 200:
            raise Unavailable(f"{server.name}: {(await response.text())[:200]}")
        await response.read()
    return time.perf_counter() - begun


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the nearest ranks; nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    at = (len(ordered) - 1) * share / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True)
class Ratio:
    """Median of pairwise ratios, with its 95 % interval (bootstrap)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """ours / theirs, pair by pair."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True) if b]
    if not pairs:
        return Ratio(*[float("nan")] * 3)
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(pairs, k=len(pairs))) for _ in range(2000))
    return Ratio(statistics.median(pairs), medians[49], medians[1949])


async def compare(
    servers: Sequence[Server],
    streams: Sequence[int],
    rounds: int,
    tokens: int,
    tell: Callable[[str], None],
) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Every server at every number of streams, `rounds` times, in turn; server -> streams ->
    rounds. One uncounted request warms each. Raises: Unavailable."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {
        s.name: {n: [] for n in streams} for s in servers
    }
    async with client() as session:
        for server in servers:
            first = await stream(session, server, 4)
            if first.error:
                raise Unavailable(f"{server.name}: {first.error}")
        for number in range(rounds):
            for count in streams:
                # Who goes first changes, so that a slow drift of the machine favours nobody.
                for server in servers if number % 2 == 0 else list(reversed(servers)):
                    result = await load_streams(session, server, count, 2 * count, tokens)
                    found[server.name][count].append(result)
                    tell(
                        f"round {number + 1}/{rounds} {server.name} {count} streams: "
                        f"{result['tokens_per_s']:.1f} tok/s"
                    )
    return found
