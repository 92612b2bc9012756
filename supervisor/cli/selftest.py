"""`selftest`: swaps, kills and checks on this machine, by a supervisor of its own."""

from __future__ import annotations

import argparse
import asyncio
import math
import platform
import random
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import background, output, remote, words
from uml.supervisor.cli.failures import FAILED, Failure, Misuse
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, duration, json_option, whole

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.selftest.house import House
    from uml.supervisor.selftest.questions import Question
    from uml.supervisor.selftest.verdict import Log, Verdict

_SEEDS = 1 << 32


def register(commands: Commands) -> None:
    parser = commands.add(
        "selftest",
        selftest,
        "swap two models again and again under load, and check everything each time",
        "uml selftest --swaps 20\numl selftest --swaps 100 --chaos\numl selftest --fake --chaos",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="two models (else the two smallest)"
    )
    parser.add_argument(
        "--swaps", metavar="N", type=whole(1, 100_000), default=20, help="how many (20)"
    )
    parser.add_argument(
        "--for",
        metavar="TIME",
        dest="limit_s",
        type=duration,
        default=math.inf,
        help='begin no further swap after this time, like "10m"',
    )
    parser.add_argument(
        "--chaos",
        action="store_true",
        help="also kill workers at random moments, and the selftest's own supervisor",
    )
    parser.add_argument(
        "--fake", action="store_true", help="with models that compute nothing, on a fake device"
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole(0, _SEEDS - 1), help="repeat the plan of an earlier run"
    )
    json_option(parser)


def selftest(args: argparse.Namespace) -> int:
    from uml.supervisor.selftest.house import House

    config = remote.load()
    questions = _questions(config, args)
    seed = random.randrange(_SEEDS) if args.seed is None else args.seed
    chaos = ", with kills" if args.chaos else ""
    output.note(f"{args.swaps} swaps between {' and '.join(questions)}{chaos}, seed {seed}")
    house = House(config, background.ourselves(), tuple(questions))
    begun = time.time()
    kept = True
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended from outside, it clears up too
    try:
        log = asyncio.run(_run(house, questions, args, seed))
        verdict = _judged(log)
        kept = not verdict.ok
    except KeyboardInterrupt:
        kept = False
        raise
    finally:
        if kept:
            output.note(f"logs of the supervisor and its workers are kept in {house.home}")
        house.remove(logs=not kept)
    report = {
        "at": begun,
        "seconds": round(time.time() - begun, 1),
        "seed": seed,
        "chaos": args.chaos,
        "models": list(questions),
        "backend": "fake" if args.fake else "real",
        "machine": machine(),
    } | verdict.to_map()
    if args.json:
        output.print_json(report)
    else:
        _print(verdict, report)
    return 0 if verdict.ok else FAILED


async def _run(
    house: House, questions: Mapping[str, Sequence[Question]], args: argparse.Namespace, seed: int
) -> Log:
    from uml.supervisor.cli.bars import Steps, live
    from uml.supervisor.selftest.drill import Drill
    from uml.supervisor.selftest.plan import make_plan

    plan = make_plan(args.swaps, seed, chaos=args.chaos)
    with Steps() as steps:
        stage = words.plural(args.swaps, "swap")

        def tell(done: int) -> None:
            steps(f"{done} of {stage}" if live() else stage, done / args.swaps)

        return await Drill(house, questions, plan, seed, tell, args.limit_s).run()


def _judged(log: Log) -> Verdict:
    from uml.supervisor.selftest.verdict import judge

    return judge(log)


def _questions(config: Config, args: argparse.Namespace) -> dict[str, list[Question]]:
    """The two models, and what they are asked. Raises: Failure when there are none."""
    from uml.supervisor.selftest.house import FAKES
    from uml.supervisor.selftest.questions import questions

    if args.fake and args.models:
        raise Misuse("--fake brings models of its own", "leave the models out, or --fake")
    if args.fake:
        return {name: questions(name, ("chat",), fake=True) for name in FAKES}
    if len(args.models) not in (0, 2):
        raise Misuse("a swap is between two models", "name two of them, or none")
    found = _able(config, args.models)
    if len(found) < 2:
        raise Failure(
            f"a swap needs two models that can answer; found here: {', '.join(found) or 'none'}",
            "`uml pull starter/embed` fetches a small one; --fake needs none",
        )
    return found


def _able(config: Config, names: Sequence[str]) -> dict[str, list[Question]]:
    """The named ones, or the two smallest that can answer and whose backend is installed."""
    from uml.plugins.loader import load_specs
    from uml.protocol.errors import UmlError
    from uml.supervisor.config import cache_dir
    from uml.supervisor.environments import Environments
    from uml.supervisor.selftest.questions import questions

    environments = Environments(config.home, cache_dir(), load_specs(config.home))
    found: dict[str, list[Question]] = {}
    with remote.registry(config) as registry:
        chosen = [registry.find(name) for name in names]
        for model in chosen or sorted(registry.models(), key=lambda m: m.file.size_bytes):
            asked = questions(model.id, model.facts.tasks if model.facts else (), fake=False)
            try:
                environments.python(model.backend or "")
            except UmlError:
                if names:
                    raise
                continue
            if asked and not model.error and len(found) < 2:
                found[model.id] = asked
            elif names:
                raise Failure(f"{model.id} can neither chat nor complete nor embed")
    return found


def machine() -> dict[str, Any]:
    """What a result was measured on."""
    import psutil

    from uml.protocol import __version__

    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    from uml.supervisor.machine import cores

    return {
        "version": __version__,
        "cpu": cpu,
        "cores": cores(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }


def _print(verdict: Verdict, report: Mapping[str, Any]) -> None:
    rows: list[tuple[str, Cell | str]] = [
        (check.name, check.text if check.ok else Cell(check.text, "red"))
        for check in verdict.checks
    ]
    rows.append(("swap", f"asked to first token: {_spread(report['swap_s'])}"))
    if report["disturbed_swap_s"]:
        rows.append(("", f"with kills: {_spread(report['disturbed_swap_s'])}"))
    rows.append(("kill", f"to memory seen back: {_spread(report['release_s'])}"))
    if report["chaos"]:
        at = ", ".join(f"{moment} {count}" for moment, count in report["kills"].items())
        rows.append(("killed", f"{words.plural(sum(report['kills'].values()), 'worker')} ({at})"))
        restarts = report["supervisors_killed"]
        again = report["asked_again"]
        rows.append(
            ("", f"{words.plural(restarts, 'supervisor')}; {again} requests asked the next one")
        )
    output.facts(rows)
    failed = [check.name for check in verdict.checks if not check.ok]
    took = words.seconds(report["seconds"])
    if failed:
        output.say(
            f"\nNOT everything held: {', '.join(failed)} (seed {report['seed']}, {took})", "red"
        )
    else:
        output.say(f"\neverything held ({took})", "green")


def _spread(figures: Mapping[str, float]) -> str:
    if not figures:
        return "not measured"
    return f"p50 {words.seconds(figures['p50'])}, p99 {words.seconds(figures['p99'])}"
