"""Simulates the scheduler beside the usual ways, and draws how long requests wait.

    make simulate                                        all scenarios, docs/scheduling.svg
    make simulate SIMULATE="--only house --requests 20000"
    make simulate SIMULATE="--recorded FILE"             what `record` wrote, again

The scheduler is the very code that runs in the supervisor. A million requests take some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tests.mount  # noqa: F401 - before all of ours

# isort: split
from tests.simulation import report
from tests.simulation.run import POLICIES, run
from tests.simulation.scenarios import GENERATED, faster, recorded

RECORDED = Path(__file__).parent / "recorded"
#: Of scenarios that need more than `--requests` to say something.
MORE = {"fleet": 10}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="SCENARIO,...", default="")
    parser.add_argument("--requests", type=int, default=20_000, help="fleet: ten times as many")
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="only this")
    parser.add_argument("--faster", type=float, default=1.0, help="recorded requests, closer")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG")
    parser.add_argument("--max-wait", type=float, default=8.0, metavar="SECONDS")
    args = parser.parse_args()
    if args.recorded:
        chosen = [faster(recorded(args.recorded), args.faster)]
    else:
        names = [n for n in args.only.split(",") if n] or list(GENERATED)
        if unknown := set(names) - GENERATED.keys():
            parser.error(f"no scenario {', '.join(sorted(unknown))}; {', '.join(GENERATED)}")
        chosen = [GENERATED[name](args.requests * MORE.get(name, 1)) for name in names]
        if not args.only:
            chosen += [recorded(file) for file in sorted(RECORDED.glob("*.jsonl"))]
    found = []
    for scenario in chosen:
        print(f"\n{scenario.name}: {scenario.says}", flush=True)
        print(report.HEAD)
        for policy in POLICIES:
            measured = run(scenario, policy, max_wait_s=args.max_wait)
            found.append(measured)
            print(report.row(measured), flush=True)
    if args.plot:
        report.plot(found, args.plot)
        print(f"\ndrawn in {args.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
