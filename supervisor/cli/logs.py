"""`logs`: what a model's worker, or the supervisor, had to say."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from uml.supervisor.cli import background, output, remote
from uml.supervisor.cli.parsing import Commands, json_option, remote_options, whole

if TYPE_CHECKING:
    from uml.supervisor.client import Client

#: Lines asked for while following: what may come between two looks.
_WINDOW = 1000
_PAUSE_S = 0.5


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
    lines = _fetch(client, args.model, args.lines)
    if args.json:
        output.print_json(lines)
        return 0
    _print(lines)
    if args.model and not lines and not args.follow:
        output.note(f"nothing yet: {args.model} is not loaded, or its worker was silent")
    if args.follow:
        _follow(client, args.model, lines)
    return 0


def _follow(client: Client, model: str | None, seen: list[str]) -> None:
    """Ends with Ctrl-C, or with the supervisor (Unreachable)."""
    while True:
        time.sleep(_PAUSE_S)
        now = _fetch(client, model, _WINDOW)
        _print(fresh(seen, now))
        seen = now


def fresh(seen: list[str], now: list[str]) -> list[str]:
    """The lines of `now` that follow those of `seen`; both are the end of one growing log."""
    for count in range(min(len(seen), len(now)), 0, -1):
        if seen[-count:] == now[:count]:
            return now[count:]
    for start in range(len(now)):  # a longer look than the first one
        if seen and now[start : start + len(seen)] == seen:
            return now[start + len(seen) :]
    return now


def _fetch(client: Client, model: str | None, lines: int) -> list[str]:
    return str(client.logs(model, lines=lines)).splitlines()


def _from_disk(args: argparse.Namespace) -> int:
    """What the last supervisor in the background left. Raises: Unreachable when there is none."""
    path = background.log_path(remote.load().home)
    if args.model or args.follow or not path.exists():
        remote.health(remote.connect(args))
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-args.lines or None :]
    if args.json:
        output.print_json(lines)
        return 0
    output.note(f"no supervisor runs; the end of {path}:")
    _print(lines if args.lines else [])
    return 0


def _print(lines: list[str]) -> None:
    for line in lines:
        print(output.clean_text(line), flush=True)
