"""Measures OpenAI-compatible servers side by side, interleaved.

Absolute times say little on a machine that others use too; so every round asks each server the
same, in turn, and what counts is the ratio within a round (`figures.ratio`). Prompts begin
differently each time, so that no prompt cache can serve more than the template's head.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import aiohttp

from uml.protocol.errors import Unavailable
from uml.supervisor.figures import percentile

#: What was measured in one go: name -> seconds, tokens per second, counts.
Figures = dict[str, float]

T = TypeVar("T")

_numbers = itertools.count(random.randrange(10**6))
#: The loads of `thrash`: share of the requests that want A; None: strictly by turns.
LOADS: dict[str, float | None] = {"by turns": None, "9 of 10 for A": 0.9}
#: A server that closes a kept-alive connection is asked again, as HTTP clients do.
_TRIES = 12
_STALE = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)


@dataclass(frozen=True)
class Server:
    """One address to measure. headers: its key, say. chat: False for a model without a template,
    which is asked for completions."""

    name: str
    base: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    chat: bool = True

    def of(self, model: str) -> Server:
        """The same address, asked for another model."""
        return replace(self, model=model)


@dataclass
class Stream:
    """One streamed answer. first_s: to the first content; gaps_s: between contents; at_s: when
    each content came, by `time.perf_counter`. error: why it counts as lost."""

    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_s: float = 0.0
    total_s: float = 0.0
    text: str = ""
    at_s: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.at_s)]


def question(words: int = 40) -> str:
    """A prompt that begins like no other one."""
    number = next(_numbers)
    tail = " ".join(["with rivers, mountains, towns and people"] * max(1, words // 6))
    return f"Request {number}: write a long story about item {number % 97}, {tail}."


def client() -> aiohttp.ClientSession:
    """A session without limits of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    )


async def stream(
    session: aiohttp.ClientSession,
    server: Server,
    tokens: int,
    words: int = 40,
    *,
    messages: Sequence[dict[str, str]] = (),
    heard: Callable[[str], None] = lambda text: None,
) -> Stream:
    """Ask for a streamed answer of exactly `tokens` tokens, to `messages` or to a new question.
    heard: told each content as it comes."""
    body: dict[str, Any] = {
        "model": server.model,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"messages": list(messages)} if messages else _says(server, question(words))
    begun = time.perf_counter()
    try:
        async with await _post(session, server, body) as response:
            found = await _read(response, begun, heard)
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        found = Stream(error=f"{type(e).__name__}: {e}")
    found.total_s = time.perf_counter() - begun
    return found


def _says(server: Server, text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} if server.chat else {"prompt": text}


async def _post(
    session: aiohttp.ClientSession, server: Server, body: dict[str, Any]
) -> aiohttp.ClientResponse:
    """The answer's head. What breaks after it is the server's fault, and is not repeated."""
    url = f"{server.base}/v1/{'chat/' if server.chat else ''}completions"
    for left in reversed(range(_TRIES)):
        try:
            return await session.post(url, json=body, headers=server.headers)
        except _STALE:
            if not left:
                raise
    raise AssertionError("unreachable")


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """What a streamed answer sends, as it comes; None is its `[DONE]`."""
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            yield None if data == b"[DONE]" else json.loads(data)


async def _read(
    response: aiohttp.ClientResponse, begun: float, heard: Callable[[str], None]
) -> Stream:
    found, done = Stream(), False
    if response.status != 200:
        found.error = f"{response.status}: {(await response.text())[:200]}"
        return found
    async for event in events(response):
        now = time.perf_counter()
        if event is None:
            done = True
            continue
        if "error" in event:
            found.error = str(event["error"])[:200]
        if usage := event.get("usage"):
            found.tokens = usage["completion_tokens"]
            found.prompt_tokens = usage["prompt_tokens"]
            found.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        choice = (event.get("choices") or [{}])[0]
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            found.at_s.append(now)
            found.text += text
            heard(text)
    if found.at_s:
        found.first_s = found.at_s[0] - begun
    found.tokens = found.tokens or len(found.at_s)
    if not found.error and not (found.at_s and done):
        found.error = "the stream broke off" if found.at_s else "an empty answer"
    return found


async def load_streams(
    session: aiohttp.ClientSession, server: Server, streams: int, requests: int, tokens: int
) -> Figures:
    """`streams` clients ask `requests` times together: tokens/s, first token, gaps, how many were
    lost. Raises: Unavailable when all were."""
    todo = iter(range(requests))
    done: list[Stream] = []

    async def ask() -> None:
        for _ in todo:
            done.append(await stream(session, server, tokens))

    begun = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(streams)))
    wall = time.perf_counter() - begun
    good = [d for d in done if not d.error]
    if not good:
        raise Unavailable(f"{server.name}: all of {requests} failed: {done[0].error}")
    return {
        "tokens_per_s": sum(d.tokens for d in good) / wall,
        "lost": float(len(done) - len(good)),
        **delays(good),
    }


def delays(done: Sequence[Stream]) -> Figures:
    """First token and gaps over all of `done`, the gaps pooled."""
    gaps = [gap for d in done for gap in d.gaps_s]
    first = [d.first_s for d in done]
    return {
        "first_p50_s": percentile(first, 50),
        "first_p99_s": percentile(first, 99),
        "gap_p50_s": percentile(gaps, 50),
        "gap_p99_s": percentile(gaps, 99),
        "gap_max_s": max(gaps, default=float("nan")),
    }


async def first_token(session: aiohttp.ClientSession, server: Server) -> float:
    """Seconds from asking to the first token. Raises: Unavailable."""
    return (await _whole(session, server)).first_s


async def _whole(session: aiohttp.ClientSession, server: Server) -> Stream:
    """A short answer. Raises: Unavailable."""
    found = await stream(session, server, 8)
    if found.error:
        raise Unavailable(f"{server.name}: {server.model}: {found.error}")
    return found


async def change(session: aiohttp.ClientSession, asked: Server) -> Figures:
    """The first token of a model that is not loaded, then of the same when it is; how much longer
    that, and the whole short answer, takes. Raises: Unavailable."""
    changed = await _whole(session, asked)
    loaded = await _whole(session, asked)
    return {
        "first_s": changed.first_s,
        "loaded_first_s": loaded.first_s,
        "per_loaded": changed.first_s / loaded.first_s,
        "whole_per_loaded": changed.total_s / loaded.total_s,
    }


async def thrash(
    session: aiohttp.ClientSession,
    server: Server,
    other: str,
    *,
    seconds: float,
    share: float | None = None,
    clients: int = 8,
    tokens: int = 16,
) -> Figures:
    """`clients` ask the server's model A and `other`, B, without pause, of a server that holds one
    of them. share: how many requests go to A; None: strictly by turns."""
    names = (server.model, other)
    waits: dict[str, list[float]] = {name: [] for name in names}
    lost = 0
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        nonlocal lost
        chance = random.Random(number)
        for turn in itertools.count(number):
            begun = time.perf_counter()
            if begun >= end:
                return
            name = names[turn % 2 if share is None else chance.random() >= share]
            text = f"{number}.{turn}: name a river"
            body = {"model": name, "max_tokens": tokens, "temperature": 0, **_says(server, text)}
            try:
                async with await _post(session, server, body) as response:
                    await response.read()
                    good = response.status == 200
            except (aiohttp.ClientError, TimeoutError, OSError):
                good = False
            if good:
                waits[name].append(time.perf_counter() - begun)
            else:
                lost += 1
                await asyncio.sleep(0.2)

    begun = time.perf_counter()
    await asyncio.gather(*(ask(i) for i in range(clients)))
    wall = time.perf_counter() - begun
    figures = {"answers_per_s": sum(map(len, waits.values())) / wall, "lost": float(lost)}
    for letter, name in zip("ab", names, strict=True):
        figures[f"answers_{letter}"] = float(len(waits[name]))
        figures[f"wait_{letter}_p50_s"] = percentile(waits[name], 50)
        figures[f"wait_{letter}_max_s"] = max(waits[name], default=float("nan"))
    return figures


def in_turn(asked: Sequence[T], number: int) -> list[T]:
    """The order of round `number`: it changes, so that a slow drift favours nobody."""
    return list(asked) if number % 2 == 0 else list(reversed(asked))


async def warm_up(session: aiohttp.ClientSession, servers: Sequence[Server]) -> None:
    """One uncounted answer of each. Raises: Unavailable."""
    for server in servers:
        await first_token(session, server)


async def compare(
    servers: Sequence[Server],
    streams: Sequence[int],
    rounds: int,
    tokens: int,
    tell: Callable[[str], None],
) -> dict[str, dict[int, list[Figures]]]:
    """Every server at every number of streams, `rounds` times, in turn; server -> streams ->
    rounds. Raises: Unavailable."""
    found: dict[str, dict[int, list[Figures]]] = {s.name: {n: [] for n in streams} for s in servers}
    async with client() as session:
        await warm_up(session, servers)
        for number in range(rounds):
            for count in streams:
                for server in in_turn(servers, number):
                    result = await load_streams(session, server, count, 2 * count, tokens)
                    found[server.name][count].append(result)
                    tell(
                        f"round {number + 1}/{rounds} {server.name} {count} streams: "
                        f"{result['tokens_per_s']:.1f} tok/s"
                    )
    return found
