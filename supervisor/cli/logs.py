"""`logs`: what a model's worker, or the supervisor, had to say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from uml.supervisor import log_file
from uml.supervisor.cli import output, remote
from uml.supervisor.cli.parsing import Commands, json_option, remote_options, whole

if TYPE_CHECKING:
    from uml.supervisor.client import Client


def register(commands: Commands) -> None:
    parser = commands.add(
        "logs",
        logs,
        "the log of a model's worker, or of the supervisor",
        "uml logs -n 50\numl logs gemma-3-270m -f",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    parser.add_argument(
        "-n", "--lines", metavar="N", type=whole(0, 100_000), default=100, help="how many lines"
    )
    json_option(parser)
    remote_options(parser)


def logs(args: argparse.Namespace) -> int:
    client = remote.running(args)
    if client is None:
        return _from_disk(args)
    style = "json" if args.json else None
    if args.follow:  # ends with Ctrl-C, or with the supervisor
        waiting = remote.connect(args, timeout=None)
        with waiting.follow_logs(args.model, args.lines, format=style) as lines:
            _print(lines)
        output.note("the supervisor has ended")
        return 0
    found = str(client.logs(args.model, args.lines, format=style)).splitlines()
    _print(found)
    if args.model:
        _beside(client, args.model, bool(found))
    return 0


def _beside(client: Client, model: str, said: bool) -> None:
    """What to know besides the lines of a model's worker."""
    known = client.models.retrieve(model)
    if not said:
        output.note(f"nothing yet: {model} is not loaded, or its worker was silent")
    if known.last_crash and known.state in ("failed", "unloaded"):
        output.note(f"its last worker failed; the report: {known.last_crash['report']}")


def _from_disk(args: argparse.Namespace) -> int:
    """What the last supervisor in the background left. Raises: Unreachable when there is none."""
    path = log_file.log_path(remote.load().home)
    if args.model or args.follow or not log_file.files(path):
        remote.health(remote.connect(args))
    lines = log_file.tail(path, args.lines)
    if args.json:
        _print(json.dumps({"line": line}) for line in lines)
        return 0
    output.note(f"no supervisor runs; the end of {path}:")
    _print(lines)
    return 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(output.clean_text(line), flush=True)
