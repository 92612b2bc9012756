"""One model under a mixed load for a while; `make soak-engine` runs it, over HTTP alone.

    ./run.py test --soak-engine                  30 minutes, into docs/reliability.md
    ./run.py test --soak-engine --minutes 10 --write-docs

Clients join and leave at any time: short and long prompts, schemas, n = 4, chats that go on, and
streams that are dropped half-way. Every greedy request was first asked alone, and has to say the
same again: its first tokens are those from alone, or differ where the two best were about as likely
(the shape of a batch changes the last digits). At the end nothing may run, all slots and cells have
to be there again, and memory may not have grown. Exit code 1 when something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from tests.mount import ROOT  # before all of ours

# isort: split
from tests import pages
from tests.benchmarks import asked, probes
from tests.benchmarks.asked import Answer, Talk
from tests.benchmarks.servers import ours
from uml.protocol import __version__
from uml.supervisor import bench
from uml.supervisor.paths import cache_dir

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- engine: written by `make soak-engine` -->", "<!-- end of engine -->"
KEPT = cache_dir() / "soak" / "engine.json"
#: Share of the greedy requests whose first tokens are those from alone.
_ALIKE = 0.98
_SAMPLE_S = 5.0
#: Minutes of a run that is written up.
FULL = 30.0
#: Growth of memory from the second third of the time to the last.
_GROWTH = 1.03


@dataclass
class Load:
    """What happened. alike: first tokens as alone; near: they differ where two were about as
    likely; crossed: neither. memory: (seconds, anonymous bytes of the worker, bytes of the
    supervisor, what the worker holds in all): conversations that are kept are files in the page
    cache, which fill up to their limit and are not the worker's own. workers: all that there
    were."""

    done: Counter[str] = field(default_factory=Counter)
    alike: int = 0
    near: int = 0
    widest_near: float = 0.0
    crossed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    new_tokens: int = 0
    prefilled_tokens: int = 0
    memory: list[tuple[float, int, int, int]] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)


async def mixed(url: str, pid: int, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """The whole run against a supervisor; figures and what did not hold."""
    load, rng = Load(), random.Random(seed)
    async with bench.client() as session:
        talk = Talk(session, url)
        _say("every slot at once, then each greedy request alone")
        before = await probes.full_house(talk)
        alone = {name: await talk.ask(body) for name, body in asked.GREEDY.items()}
        _say(f"{clients} clients for {minutes:g} minutes")
        started = time.monotonic()
        end = started + minutes * 60
        watching = asyncio.create_task(_watch(talk, psutil.Process(pid), load, started))
        await asyncio.gather(
            *(_client(talk, load, alone, end, random.Random(rng.random())) for _ in range(clients))
        )
        seconds = time.monotonic() - started
        idle_s = await talk.until_idle()
        watching.cancel()
        _say("every slot at once again, then one more than there are slots")
        after = await probes.full_house(talk)
        free = await probes.cancelled_slot(talk)
        worker = await talk.worker()
    return _result(load, seconds, idle_s, before, after, free, worker, clients, seed)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _client(
    talk: Talk, load: Load, alone: dict[str, Answer], end: float, rng: random.Random
) -> None:
    chat: list[dict[str, str]] = []
    known = 0
    while time.monotonic() < end:
        await asyncio.sleep(rng.expovariate(4))  # clients come and go
        kind = rng.choices(("greedy", "dropped", "chat", "sampled"), (60, 15, 15, 10))[0]
        try:
            match kind:
                case "greedy":
                    name = rng.choice(list(alone))
                    answer = await talk.ask(asked.GREEDY[name], stream=rng.random() < 0.5)
                    kind = name.partition(" ")[0]
                    _compare(load, name, alone[name], answer)
                case "dropped":
                    answer = await talk.drop(asked.story(rng), after=rng.randint(0, 20))
                case "chat":
                    if len(chat) >= 20:
                        chat, known = [], 0
                    chat, answer = await talk.turn(chat, rng)
                    load.new_tokens += answer.prompt_tokens - known
                    load.prefilled_tokens += answer.prompt_tokens - answer.cached_tokens
                    known = answer.prompt_tokens + answer.tokens
                case _:
                    body, valid = asked.sampled(rng)
                    answer = await talk.ask(body)
                    if answer.finish[0] == "stop" and not valid(answer.text):
                        load.errors.append(f"{kind}: {answer.text[:80]}")
        except (aiohttp.ClientError, OSError, TimeoutError, asked.Refused) as e:
            load.errors.append(f"{kind}: {type(e).__name__} {e}"[:200])
            continue
        load.done[kind] += 1
        load.tokens += answer.tokens


def _compare(load: Load, name: str, alone: Answer, answer: Answer) -> None:
    for choice in answer.choices:
        differs, margin = asked.first_difference(alone.choices[0], choice)
        if differs is None:
            load.alike += 1
        elif margin is not None:
            load.near += 1
            load.widest_near = max(load.widest_near, margin)
        else:
            load.crossed.append(f"{name}, token {differs}: {[t for t, _ in choice][:16]}")


async def _watch(talk: Talk, supervisor: psutil.Process, load: Load, started: float) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_S)
        worker = await talk.worker()
        held = worker["memory_bytes"]["ram"]
        own = supervisor.memory_info().rss
        load.workers.add(worker["id"])
        with contextlib.suppress(psutil.Error):  # it may just have ended
            seen = psutil.Process(worker["pid"]).memory_info()
            anonymous = seen.rss - seen.shared
            load.memory.append((time.monotonic() - started, anonymous, own, held))
        if len(load.memory) % 12 == 0:
            failed = len(load.errors) + len(load.crossed)
            _say(f"{sum(load.done.values())} done, {failed} failed, worker {held / 1e6:.0f} MB")


def _result(
    load: Load,
    seconds: float,
    idle_s: float,
    before: probes.House,
    after: probes.House,
    free: probes.Freed,
    worker: dict[str, Any],
    clients: int,
    seed: int,
) -> dict[str, Any]:
    compared = load.alike + load.near + len(load.crossed)
    thirds = [_middle(load.memory, seconds, n) for n in range(3)]
    growth = [late / early for early, late in zip(thirds[1], thirds[2], strict=True)]
    lease = worker["lease_bytes"]["ram"]
    # As footprints count it; the files of kept conversations are cache, which anybody may reclaim.
    held = max(m[1] for m in load.memory) + worker["facts"]["weights_bytes"]
    checks = {
        "no request failed": not load.errors,
        "no crossed answers": not load.crossed,
        f"first tokens as alone, of {_ALIKE:.0%}": load.alike >= _ALIKE * compared,
        "nothing runs after the last answer": worker["busy"] == worker["waiting"] == 0,
        "all slots at once, before and after": before.together and after.together,
        "memory does not grow": max(growth) <= _GROWTH,
        "one worker all the time": len(load.workers) == 1,
        "memory within the lease": held <= lease * 1.02,
        # The step that runs; and where every core computes, part of one until HTTP has told it.
        "a dropped stream's slot is free within a step": free.steps <= 2,
    }
    return {
        "at": time.time(),
        "seconds": seconds,
        "clients": clients,
        "seed": seed,
        "version": __version__,
        "cores": psutil.cpu_count(),
        "done": dict(load.done),
        "tokens": load.tokens,
        "compared": compared,
        "alike": load.alike,
        "near": load.near,
        "widest_near": load.widest_near,
        "crossed": load.crossed[:10],
        "errors": load.errors[:10],
        "chat_prefilled_per_new": load.prefilled_tokens / max(1, load.new_tokens),
        "idle_s": idle_s,
        "memory_mb": [[round(b / 1e6, 1) for b in third] for third in thirds],
        "growth": [round(g, 4) for g in growth],
        "lease_mb": lease / 1e6,
        "held_mb": held / 1e6,
        "house": [before.__dict__, after.__dict__],
        "freed": free.__dict__ | {"steps": free.steps},
        "slots": worker["slots"],
        "context": worker["context"],
        "kv_cells": worker["facts"].get("kv_cells"),
        "checks": checks,
    }


def _middle(
    memory: list[tuple[float, int, int, int]], seconds: float, third: int
) -> tuple[float, ...]:
    """(worker, supervisor): medians over a third of the time."""
    some = [m for m in memory if third <= 3 * m[0] / seconds < third + 1] or memory[-1:]
    return tuple(float(sorted(m[i] for m in some)[len(some) // 2]) for i in (1, 2))


def table(r: dict[str, Any]) -> str:
    failed = [name for name, ok in r["checks"].items() if not ok]
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(r["done"].items()))
    first, second, third = r["memory_mb"]
    freed = r["freed"]
    same = f"{r['alike']} of {r['compared']} ({r['alike'] / max(1, r['compared']):.1%})"
    when, minutes = time.strftime("%d %B %Y", time.gmtime(r["at"])), r["seconds"] / 60
    rows = {
        "result": f"**NOT held: {', '.join(failed)}**" if failed else "everything held",
        "when": f"{when}, {minutes:.0f} min, {r['cores']} cores, uml {r['version']}, "
        f"seed {r['seed']}",
        "model": f"SmolLM2-135M Q4_1, {r['slots']} slots, context {r['context']}, "
        f"{r['kv_cells']} cells",
        "requests": f"{sum(r['done'].values())} by {r['clients']} clients: {done}; "
        f"{r['tokens']} tokens; {len(r['errors'])} failed",
        "first 16 tokens as alone": f"{same}; {r['near']} differ where the two best were at most "
        f"{r['widest_near']:.2f} nats apart; {len(r['crossed'])} crossed",
        "prefilled / new tokens of chats": f"{r['chat_prefilled_per_new']:.2f}",
        "memory of the worker's own, by thirds": f"{first[0]:.0f}, {second[0]:.0f}, "
        f"{third[0]:.0f} MB; with the weights at most {r['held_mb']:.0f} MB "
        f"(lease {r['lease_mb']:.0f} MB)",
        "memory of the supervisor": f"{first[1]:.0f}, {second[1]:.0f}, {third[1]:.0f} MB",
        "all slots side by side": " and ".join(
            f"{h['streams']} streams, {h['cells']} cells" for h in r["house"]
        )
        + ", before and after",
        "dropped stream to its slot free": f"{freed['seconds'] * 1000:.0f} ms, "
        f"{freed['steps']:.1f} steps of {freed['step_s'] * 1000:.0f} ms; to the first token of who "
        f"waited for it {freed['next_s'] * 1000:.0f} ms",
    }
    lines = ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join(lines)


def write() -> None:
    """The last result into the page."""
    pages.put(PAGE, BEGIN, table(json.loads(KEPT.read_text())), END)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run.py test --soak-engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=FULL)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-docs", action="store_true", help="into docs/reliability.md")
    args = parser.parse_args()
    with ours() as s:
        found = mixed(s.url, s.process.pid, args.minutes, args.clients, args.seed)
        result = asyncio.run(found)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(result, indent=1))
    print(table(result))
    for name, ok in result["checks"].items():
        print(f"{'ok  ' if ok else 'NOT '} {name}")
    for text in (*result["crossed"], *result["errors"]):
        print(f"     {text}")
    if args.write_docs or args.minutes >= FULL:
        write()
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
