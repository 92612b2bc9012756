"""Whether a greedy request is answered among others as it is alone: the first 16 tokens.

The shape of a batch decides in which order llama.cpp adds up, and a small model is often undecided
between two words. llama-server beside ours shows what of that is the library's.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import aiohttp

from tests.benchmarks import asked
from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import beside
from uml.supervisor import bench
from uml.supervisor.bench import Figures, Server

_FIRST, _CLIENTS, _SECONDS = 16, 12, 15.0
#: Kinds of `asked.GREEDY` that ask at the same time.
_MIXES = {"short prompts": ("short",), "short and long prompts": ("short", "long")}


async def same(run: Run) -> None:
    """12 clients for 15 seconds, first with short prompts alone, then with some of up to 2,000
    tokens among them."""
    with beside(run.llama_server, (8,), 4096) as servers:
        async with bench.client() as session:
            alone = {server.name: await _alone(session, server) for server in servers}
            for number in range(run.rounds):
                for mix, kinds in _MIXES.items():
                    names = [name for name in asked.GREEDY if name.partition(" ")[0] in kinds]
                    for server in bench.in_turn(servers, number):
                        found = _together(session, server, names, alone[server.name], number)
                        await run.measure(mix, server.name, number, found)


async def _alone(session: aiohttp.ClientSession, server: Server) -> dict[str, list[str]]:
    return {name: await _ask(session, server, body) for name, body in asked.GREEDY.items()}


async def _together(
    session: aiohttp.ClientSession,
    server: Server,
    names: list[str],
    alone: dict[str, list[str]],
    seed: int,
) -> Figures:
    end, answers, alike = time.monotonic() + _SECONDS, 0, 0

    async def client(rng: random.Random) -> None:
        nonlocal answers, alike
        while time.monotonic() < end:
            name = rng.choice(names)
            said = await _ask(session, server, asked.GREEDY[name])
            answers, alike = answers + 1, alike + (said == alone[name])

    await asyncio.gather(*(client(random.Random(f"{seed} {i}")) for i in range(_CLIENTS)))
    return {"alike": alike / answers, "answers": float(answers)}


async def _ask(session: aiohttp.ClientSession, server: Server, body: dict[str, Any]) -> list[str]:
    body = body | {"model": server.model, "max_tokens": _FIRST, "logprobs": True, "n": 1}
    url, headers = f"{server.base}/v1/chat/completions", {"Connection": "close"}
    async with session.post(url, json=body, headers=headers) as response:
        response.raise_for_status()
        (choice,) = (await response.json())["choices"]
    return [token["token"] for token in choice["logprobs"]["content"]]
