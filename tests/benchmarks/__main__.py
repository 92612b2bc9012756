"""Measures uml beside llama-server and beside a bare loop; `./run.py test --bench` runs it.

    ./run.py test --bench --llama-server PATH        everything (about 40 minutes, quiet machine)
    ./run.py test --bench --only swap,thrash --rounds 5
    ./run.py test --bench --write-docs               the tables of docs/benchmarks.md

Every measurement is appended to the results at once, so that sections and rounds may be measured
in different windows. Of a section only what the newest commit found is written up. Not a test: it
judges nothing, and the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.mount import ROOT  # before all of ours

# isort: split
from tests.benchmarks import chats, forms, gateway, generation, report, same, speech, swaps
from tests.benchmarks.bench_run import Run, Section
from uml.supervisor.paths import cache_dir

SECTIONS: dict[str, Section] = {
    "streams": generation.streams,
    "crowd": generation.crowd,
    "long-prompt": generation.long_prompt,
    "chats": chats.chats,
    "same": same.same,
    "forms": forms.forms,
    "swap": swaps.swap,
    "thrash": swaps.thrash,
    "gateway": gateway.gateway,
    "memory": gateway.memory,
    "speech": speech.speech,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run.py test --bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="SECTION,...", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--llama-server", type=Path, metavar="PATH")
    parser.add_argument(
        "--results", type=Path, default=cache_dir() / "benchmarks.jsonl", metavar="FILE"
    )
    parser.add_argument("--write-docs", action="store_true", help="write up the results, and end")
    args = parser.parse_args()
    if args.write_docs:
        report.write(args.results, ROOT / "docs")
        return 0
    chosen = args.only.split(",")
    if unknown := set(chosen) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    run = Run(args.rounds, args.llama_server, args.results, args.tokens)
    for name in chosen:
        run.section = name
        asyncio.run(SECTIONS[name](run))
    print(f"\n{report.table(args.results, chosen)}\nkept in {args.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
