"""What the gateway itself costs: the fake backend computes nothing, so all that is left is ours.
Processor time is counted, not wall time: a busy machine makes it a little dearer, no more."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil

from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import as_server, ours, resident
from tests.integration.serving import Serving, fake_model, serving
from uml.supervisor import bench
from uml.supervisor.bench import Figures, Server
from uml.supervisor.figures import percentile

#: Streams, tokens of each, and the pause between two steps: 3,200 tokens a second.
_STREAMS, _TOKENS, _STEP_S = 64, 200, 0.02
#: How the streams go: as a batching engine's do; each at a pace of its own, so that hardly two
#: tokens come in one frame.
_PACES: dict[str, Callable[[int], float]] = {
    "": lambda i: _STEP_S,
    ", each at its own pace": lambda i: _STEP_S * (1 + i / (10 * _STREAMS)),
}
_TINY = 300
_OPEN = 500


async def gateway(run: Run) -> None:
    """CPU per streamed token at 64 streams, a tiny request end to end, memory with 500 streams."""
    with tempfile.TemporaryDirectory(prefix="uml-bench-") as folder:
        home = Path(folder)
        fake_model(home, "paced", options={"slots": _OPEN, "token_delay": _STEP_S})
        fake_model(home, "slow", options={"slots": _OPEN, "token_delay": 1.0})
        fake_model(home, "quick", options={"slots": 4})
        with serving(home) as s:
            async with bench.client() as session:
                paced, quick, slow = (as_server(s, m) for m in ("paced", "quick", "slow"))
                for number in range(run.rounds):
                    for case, pace in _PACES.items():
                        cost = _per_token(session, s, paced, pace)
                        await run.measure(f"{_STREAMS} streams{case}", "uml", number, cost)
                    await run.measure("tiny request", "uml", number, _tiny(session, quick))
                await run.measure(f"{_OPEN} open streams", "uml", 0, _open(session, s, slow))


def _slow(step_s: float) -> list[dict[str, str]]:
    """What makes the fake backend wait this long before each token."""
    return [{"role": "user", "content": f"slow={step_s:.5f}"}]


def _cpu_s(s: Serving) -> dict[int, float]:
    return {p.pid: p.cpu_times().user + p.cpu_times().system for p in s.tree()}


async def _per_token(
    session: aiohttp.ClientSession, s: Serving, server: Server, pace: Callable[[int], float]
) -> Figures:
    """Microseconds of CPU per token, from when all streams run until the first one ends. pace:
    seconds per token of each stream."""
    heard = 0
    running = asyncio.Event()

    def hear(text: str) -> None:
        nonlocal heard
        heard += 1
        if heard >= 10 * _STREAMS:
            running.set()

    asks = [
        asyncio.ensure_future(
            bench.stream(session, server, _TOKENS, messages=_slow(pace(i)), heard=hear)
        )
        for i in range(_STREAMS)
    ]
    await running.wait()
    before, first = _cpu_s(s), heard
    await asyncio.sleep((_TOKENS - 40) * _STEP_S)
    after, tokens = _cpu_s(s), heard - first
    if lost := [d.error for d in await asyncio.gather(*asks) if d.error]:
        raise RuntimeError(lost[0])
    own = psutil.Process(s.process.pid).pid
    supervisor = after[own] - before[own]
    total = sum(after[pid] - before.get(pid, 0.0) for pid in after)
    return {
        "supervisor_us": supervisor / tokens * 1e6,
        "worker_us": (total - supervisor) / tokens * 1e6,
        "total_us": total / tokens * 1e6,
        "tokens": float(tokens),
    }


async def _tiny(session: aiohttp.ClientSession, server: Server) -> Figures:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    took = []
    for _ in range(_TINY + 20):
        begun = time.perf_counter()
        async with session.post(f"{server.base}/v1/chat/completions", json=body) as response:
            await response.read()
            assert response.status == 200, await response.text()
        took.append(time.perf_counter() - begun)
    del took[:20]
    return {"p50_s": percentile(took, 50), "p99_s": percentile(took, 99)}


async def _open(session: aiohttp.ClientSession, s: Serving, server: Server) -> Figures:
    """Memory of the supervisor while 500 streams are open and all have said something."""
    before = resident(s.process.pid)
    heard: set[int] = set()
    all_talk = asyncio.Event()

    def note(number: int):  # type: ignore[no-untyped-def]
        def hear(text: str) -> None:
            heard.add(number)
            if len(heard) == _OPEN:
                all_talk.set()

        return hear

    asks = [
        asyncio.ensure_future(bench.stream(session, server, 8, 6, heard=note(i)))
        for i in range(_OPEN)
    ]
    await all_talk.wait()
    rss = resident(s.process.pid)
    done = await asyncio.gather(*asks)
    return {
        "rss_mb": rss,
        "rss_before_mb": before,
        "lost": float(sum(bool(d.error) for d in done)),
    }


async def memory(run: Run) -> None:
    """What the processes hold: empty, and with the model after a wave of 8 streams."""
    import contextlib

    from tests.benchmarks.servers import llama_server, single

    with contextlib.ExitStack() as stack:
        s = stack.enter_context(ours())
        await asyncio.sleep(2)
        empty = resident(s.process.pid)
        async with bench.client() as session:
            server = as_server(s)
            await bench.load_streams(session, server, 8, 8, 16)
            worker = sum(resident(p.pid) for p in s.tree() if p.pid != s.process.pid)
            own = resident(s.process.pid)
            figures = {"supervisor_empty_mb": empty, "supervisor_mb": own, "worker_mb": worker}
            run.note("after 8 streams", "uml", 0, figures)
            if run.llama_server:
                there = llama_server(run.llama_server, "llama-server -np 8", single(8, 1024))
                peer, pid = stack.enter_context(there)
                await bench.load_streams(session, peer, 8, 8, 16)
                run.note("after 8 streams", peer.name, 0, {"worker_mb": resident(pid)})
