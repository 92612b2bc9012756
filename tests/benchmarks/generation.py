"""Tokens per second, first tokens and gaps: at 1, 4, 8 streams, in a crowd of 32, and with a long
prompt that arrives in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import Bare, beside
from uml.supervisor import bench
from uml.supervisor.bench import Figures, Server

#: Running streams, and words of the prompt that comes in between (1,500 tokens).
_RUNNING, _LONG = 4, 1180


async def streams(run: Run) -> None:
    """One wave of 1, 4 and 8 clients."""
    await _waves(run, (1, 4, 8), slots=(8,))


async def crowd(run: Run) -> None:
    """32 clients at once; llama-server with 8 slots and with 32."""
    await _waves(run, (32,), slots=(8, 32))


async def _waves(run: Run, counts: Sequence[int], slots: Sequence[int]) -> None:
    with beside(run.llama_server, slots) as servers:
        async with bench.client() as session:
            await bench.warm_up(session, servers)
            # What is not of the template's head has to be computed, by the bare loop too.
            seen = await bench.stream(session, servers[0], 4)

            def wave(server: Server, count: int) -> Callable[[], Awaitable[Figures]]:
                return lambda: bench.load_streams(session, server, count, count, run.tokens)

            with Bare(max(counts)) as bare:

                def bare_wave(count: int) -> Callable[[], Awaitable[Figures]]:
                    shape = (count, run.tokens, seen.prompt_tokens, seen.cached_tokens)
                    return lambda: asyncio.to_thread(bare.load, *shape)

                for number in range(run.rounds):
                    for count in counts:
                        asks = [(s.name, wave(s, count)) for s in servers]
                        asks.append(("bare loop", bare_wave(count)))
                        for name, ask in bench.in_turn(asks, number):
                            await run.measure(f"{count} streams", name, number, ask())


async def long_prompt(run: Run) -> None:
    """Four running streams, and a prompt of 1,500 tokens that arrives when each has said
    something: the gaps of the four, and the first token of the long one."""
    with beside(run.llama_server, (8,), context=2048) as servers:
        async with bench.client() as session:
            await bench.warm_up(session, servers)

            async def disturbed(server: Server) -> Figures:
                heard: set[int] = set()
                all_talk = asyncio.Event()

                def note(number: int) -> Callable[[str], None]:
                    def hear(text: str) -> None:
                        heard.add(number)
                        if len(heard) == _RUNNING:
                            all_talk.set()

                    return hear

                running = [
                    asyncio.ensure_future(bench.stream(session, server, run.tokens, heard=note(i)))
                    for i in range(_RUNNING)
                ]
                await all_talk.wait()
                long = await bench.stream(session, server, 8, _LONG)
                done = [long, *[await r for r in running]]
                lost = [d.error for d in done if d.error]
                return {
                    **bench.delays(done[1:]),
                    "long_prompt_tokens": float(long.prompt_tokens),
                    "long_first_s": long.first_s,
                    "lost": float(len(lost)),
                }

            for number in range(run.rounds):
                for server in bench.in_turn(servers, number):
                    await run.measure("1,500 tokens", server.name, number, disturbed(server))
