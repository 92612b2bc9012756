"""Two models and room for one: how long a change takes, and what a server makes of clients that
want both at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import as_server, llama_server, ours, two_models
from tests.integration.serving import BASE, Serving
from uml.supervisor import bench
from uml.supervisor.bench import Figures, Server
from uml.supervisor.figures import percentile

#: Seconds of each load of `thrash`.
_SECONDS = 20.0
#: A standby is started a second after the last change, so asking earlier would miss it.
_PAUSE_S = 2.0


@contextlib.contextmanager
def _servers(
    run: Run,
) -> Iterator[tuple[list[Server], dict[str, tuple[str, str]], dict[str, Serving]]]:
    """Ours, ours with a warm standby, and llama-server's router, each with room for one; case ->
    the two models that change places."""
    with two_models() as (folder, names), contextlib.ExitStack() as stack:
        cases = {"A to B": names}
        for other in Path(os.environ["UML_TEST_MODELS"]).glob("gemma-3-270m*.gguf"):
            (folder / f"{BASE}.gguf").symlink_to(other)
            cases[f"to {BASE} and back"] = (names[0], BASE)
        room = {"UML_MAX_LOADED": "1", "UML_MODEL_DIRS": str(folder)}
        plain = stack.enter_context(ours(**room))
        standby = stack.enter_context(ours(**room, UML_STANDBY="llama_cpp"))
        own = {"uml": plain, "uml with a standby": standby}
        found = [Server(name, s.url, names[0]) for name, s in own.items()]
        if run.llama_server:
            argv = ["--models-dir", str(folder), "--models-max", "1", "-np", "8", "-c", "8192"]
            there = llama_server(run.llama_server, "llama-server router", argv, names[0])
            found.append(stack.enter_context(there)[0])
        yield found, cases, own


async def swap(run: Run) -> None:
    """From asking the model that is not loaded to its first token; then the same of the loaded
    one. What the receipts of our own servers say of the release. The second pair is asked for
    completions: one of it is a base model."""
    with _servers(run) as (servers, cases, own):
        async with bench.client() as session:
            await bench.warm_up(session, servers)
            for case, names in cases.items():
                chat = BASE not in names
                for number in range(2 * run.rounds):
                    for server in bench.in_turn(servers, number):
                        if server.name == "uml with a standby":
                            await asyncio.sleep(_PAUSE_S)
                        asked = replace(server, model=names[(number + 1) % 2], chat=chat)
                        changed = bench.change(session, asked)
                        await run.measure(case, server.name, number, changed)
        for name, s in own.items():
            run.note("release", name, 0, _released(s))


def _released(s: Serving) -> Figures:
    receipts = s.client.status()["receipts"]
    ms = [r["ms"] for r in receipts]
    return {
        "receipts": float(len(receipts)),
        "verified": float(sum(r["verified"] == "yes" for r in receipts)),
        "release_p50_s": percentile(ms, 50) / 1000,
        "release_p99_s": percentile(ms, 99) / 1000,
    }


async def thrash(run: Run) -> None:
    """8 clients that want A and B: strictly by turns, then nine times A for each B."""
    with two_models() as (folder, names), contextlib.ExitStack() as stack:
        room = {"UML_MAX_LOADED": "1", "UML_MODEL_DIRS": str(folder)}
        servers = [as_server(stack.enter_context(ours(**room)), names[0])]
        if run.llama_server:
            argv = ["--models-dir", str(folder), "--models-max", "1", "-np", "8", "-c", "8192"]
            there = llama_server(run.llama_server, "llama-server router", argv, names[0])
            servers.append(stack.enter_context(there)[0])
        async with bench.client() as session:
            await bench.warm_up(session, servers)
            for number in range(run.rounds):
                for case, share in bench.LOADS.items():
                    for server in bench.in_turn(servers, number):
                        load = bench.thrash(
                            session, server, names[1], seconds=_SECONDS, share=share
                        )
                        await run.measure(case, server.name, number, load)
