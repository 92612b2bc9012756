"""Prefixes that come again: a chat that goes on, and chats with the same system prompt. Counted in
tokens, as `usage` tells them, so that a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import itertools

import aiohttp

from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import beside
from uml.protocol.errors import Unavailable
from uml.supervisor import bench
from uml.supervisor.bench import Figures, Server, Stream

_TURNS, _CHATS, _ANSWER = 10, 8, 32
_rules = itertools.count(1)


async def chats(run: Run) -> None:
    """10 turns after a system prompt of 1,000 tokens; then 8 chats at once under a new one."""
    with beside(run.llama_server, (8,), 2048) as servers:
        async with bench.client() as session:
            await bench.warm_up(session, servers)
            for number in range(run.rounds):
                for server in bench.in_turn(servers, number):
                    await run.measure("10 turns", server.name, number, _turns(session, server))
                for server in bench.in_turn(servers, number):
                    shared = _shared(session, server)
                    await run.measure("8 chats", server.name, number, shared)


def _system_prompt() -> str:
    """Some 1,000 tokens that begin like no other one."""
    number = f"{next(_rules)} of {bench.question(6)}"
    rule = "Be brief, be kind, name rivers and towns, and never speak of the weather in winter. "
    return f"Rules {number}: " + rule * 50


async def _ask(
    session: aiohttp.ClientSession, server: Server, messages: list[dict[str, str]]
) -> Stream:
    found = await bench.stream(session, server, _ANSWER, messages=messages)
    if found.error:
        raise Unavailable(f"{server.name}: {found.error}")
    return found


async def _turns(session: aiohttp.ClientSession, server: Server) -> Figures:
    """New tokens of a turn: its prompt less the one before and what was answered to that."""
    said = [{"role": "system", "content": _system_prompt()}]
    new = prefilled = later_new = later_prefilled = known = 0
    waits = []
    for turn in range(_TURNS):
        said.append({"role": "user", "content": f"Turn {turn}: {bench.question(18)}"})
        answer = await _ask(session, server, said)
        said.append({"role": "assistant", "content": answer.text})
        fresh, computed = answer.prompt_tokens - known, answer.prompt_tokens - answer.cached_tokens
        new, prefilled = new + fresh, prefilled + computed
        if turn:
            later_new, later_prefilled = later_new + fresh, later_prefilled + computed
            waits.append(answer.first_s)
        known = answer.prompt_tokens + answer.tokens
    return {
        "new_tokens": float(new),
        "prefilled_tokens": float(prefilled),
        "prefilled_per_new": prefilled / new,
        "prefilled_per_new_after_the_first": later_prefilled / later_new,
        "first_p50_s": sorted(waits)[len(waits) // 2],
    }


async def _shared(session: aiohttp.ClientSession, server: Server) -> Figures:
    """How often the system prompt was computed: what was prefilled beyond each chat's own part,
    in lengths of it."""
    system = _system_prompt()

    def chat(rules: str, question: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": rules}, {"role": "user", "content": question}]

    questions = [bench.question(12) for _ in range(_CHATS)]
    alone = [(await _ask(session, server, chat("", q))).prompt_tokens for q in questions]
    answers = await asyncio.gather(*(_ask(session, server, chat(system, q)) for q in questions))
    length = answers[0].prompt_tokens - alone[0]
    prefilled = sum(a.prompt_tokens - a.cached_tokens for a in answers)
    return {
        "system_tokens": float(length),
        "prefilled_tokens": float(prefilled),
        "system_computed_times": (prefilled - sum(alone)) / length,
        "first_p99_s": max(a.first_s for a in answers),
    }
