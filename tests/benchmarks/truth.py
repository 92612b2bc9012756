"""How near the estimates come to what models take, and how fast memory is back after an unload.

    python -m tests.benchmarks.truth --home HOME estimates            the table of docs/memory.md
    python -m tests.benchmarks.truth --home HOME releases --count 50  receipts add up over runs

HOME: a UML_HOME with the llama_cpp backend installed (a link will do); its registry is begun anew
for the estimates. Not a test: it judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import tests.mount  # noqa: F401 - before all of ours

# isort: split
from tests.supervisor.house import House, Reader, house
from uml.protocol.tasks import Complete, Embed, Sampling, Task


def _work(model: Any, number: int) -> Task:
    """A request of some size: batches are to be full."""
    if "embed" in model.facts.tasks:
        return Embed(
            inputs=[f"text {number} {i} " + "of a few words " * (i % 9) for i in range(40)]
        )
    prompt = f"Story {number}: " + "once upon a time there was a king " * 60
    return Complete(prompt=prompt, max_tokens=24, sampling=Sampling(seed=1))


async def _live(h: House, model: Any, requests: int) -> dict[str, int]:
    """One life of a worker under work; its peak."""
    await h.pool.commands.load(model)
    worker = h.worker(model.id)["id"]
    serving = h.pool.serving
    await asyncio.gather(*(serving.run(model, _work(model, n), Reader()) for n in range(requests)))
    h.pool.look_at_footprint(worker)
    peak = dict(h.pool.footprints._lives[worker].peak)
    await h.pool.commands.unload(model.id)
    return peak


async def estimates(home: Path, names: list[str]) -> None:
    for path in home.glob("registry.sqlite*"):
        path.unlink()
    async with house(home, max_loaded=1) as h:
        print("| model | estimate | measured peak | off before learning | off after |")
        print("|---|--:|--:|--:|--:|")
        for model in h.registry.models():
            if names and model.id not in names:
                continue
            guess = sum(h.pool._needs.size(model).estimate.values())
            first = sum((await _live(h, model, 8)).values())
            learned = sum((h.pool._needs.size(model).learned or {}).values())
            second = sum((await _live(h, model, 8)).values())
            print(
                f"| {model.id} | {guess / 1e6:.0f} MB | {first / 1e6:.0f} MB | "
                f"{guess / first - 1:+.1%} | {learned / second - 1:+.1%} |",
                flush=True,
            )


async def releases(home: Path, count: int, names: list[str]) -> None:
    record = home / "releases.json"
    found: list[Any] = json.loads(record.read_text()) if record.exists() else []
    async with house(home, max_loaded=1) as h:
        models = [m for m in h.registry.models() if not names or m.id in names]
        for number in range(count):
            model = models[number % len(models)]
            await h.pool.serving.run(model, _short(model), Reader())
            found += await h.pool.commands.unload(model.id)
            record.write_text(json.dumps(found))
    print("| model | unloads | verified | back after, p50 | p99 | max |\n|---|--:|--:|--:|--:|--:|")
    for name in [*sorted({r["model"] for r in found}), "all"]:
        mine = [r for r in found if name in (r["model"], "all")]
        ms = sorted(r["ms"] for r in mine)
        good = sum(r["verified"] == "yes" for r in mine)
        print(
            f"| {name} | {len(ms)} | {good} | {ms[len(ms) // 2]:.0f} ms | "
            f"{ms[min(len(ms) - 1, int(len(ms) * 0.99))]:.0f} ms | {ms[-1]:.0f} ms |"
        )


def _short(model: Any) -> Task:
    if "embed" in model.facts.tasks:
        return Embed(inputs=["one text"])
    return Complete(prompt="Once", max_tokens=2, sampling=Sampling(seed=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("what", choices=("estimates", "releases"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--model", action="append", default=[])
    args = parser.parse_args()
    if args.what == "estimates":
        asyncio.run(estimates(args.home, args.model))
    else:
        asyncio.run(releases(args.home, args.count, args.model))


if __name__ == "__main__":
    main()
