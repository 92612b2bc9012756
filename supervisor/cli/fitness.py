"""`doctor` and `version`: is this machine fit, and what is this program."""

from __future__ import annotations

import argparse
import dataclasses
import platform

from uml.protocol import WIRE_VERSION, __version__
from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.failures import in_their_words
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def register(commands: Commands) -> None:
    parser = commands.add(
        "doctor", examine, "is this machine fit, with the fix for each fault", "uml doctor"
    )
    parser.add_argument("--config", metavar="FILE", help="configuration (else uml.toml)")
    json_option(parser)
    json_option(commands.add("version", version, "what this is", "uml version --json"))


def examine(args: argparse.Namespace) -> int:
    from uml.supervisor.config import Config, ConfigError
    from uml.supervisor.doctor import Check, doctor, exit_code
    from uml.supervisor.paths import home_dir

    wrong: list[Check] = []
    try:
        config = remote.load(args.config)
    except ConfigError as e:
        fix = "correct it; docs/uml.example.toml shows every key"
        wrong = [Check("configuration", "fail", e.message, fix)]
        config = Config(home=home_dir())
    checks = wrong + [c for c in doctor(config) if not (wrong and c.name == "configuration")]
    if args.json:
        output.print_json([dataclasses.asdict(c) for c in checks])
        return exit_code(checks)
    rows: list[list[Cell | str]] = []
    for check in checks:
        level, what = Cell(check.level, _STYLES[check.level]), in_their_words(check.what)
        rows.append([level, check.name, what])
        if check.fix:
            rows.append(["", "", Cell(f"fix: {in_their_words(check.fix)}", "bold")])
    output.table(("", "CHECK", "FOUND"), rows)
    worst = [sum(c.level == level for c in checks) for level in ("fail", "warn")]
    output.note(f"\n{_verdict(*worst)}")
    return exit_code(checks)


def _verdict(fails: int, warnings: int) -> str:
    more = f", {words.plural(warnings, 'warning')}" if warnings else ""
    return f"not fit yet: {fails} to put right{more}" if fails else f"fit{more}"


def version(args: argparse.Namespace) -> int:
    found = {
        "version": __version__,
        "wire": ".".join(map(str, WIRE_VERSION)),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if args.json:
        output.print_json(found)
    else:
        output.say(f"uml {__version__} (python {found['python']}, {found['platform']})")
    return 0
