"""The command line. Imports here stay light: `--help` needs argparse and nothing else, what a
command needs it imports when it runs."""

from __future__ import annotations

import argparse
import io
import os
import sys

from uml.supervisor.cli.failures import INTERRUPTED, MISUSE, Misuse, program, report
from uml.supervisor.cli.parsing import Commands, Parser, not_understood, overview, unknown

#: What `uml --help` shows, in this order; commands that are not named come last.
_GROUPS = {
    "start and end": ("up", "serve", "stop", "test"),
    "models": ("run", "ls", "show", "pull", "rm"),
    "memory": ("ps", "load", "unload", "swap", "profile", "status"),
    "what happens": ("top", "stats", "logs"),
    "care": ("doctor", "selftest", "bench", "backends", "config", "version"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 misuse, 3 no supervisor reachable, 130 on
    Ctrl-C. Errors are one line on stderr; UML_DEBUG=1 adds the traceback."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what no encoding has
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except SystemExit as e:  # argparse, after --help
        return e.code if isinstance(e.code, int) else MISUSE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `uml ls | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        sys.stdout.flush()
        return report(e)


def _run(argv: list[str]) -> int:
    parser, commands = build()
    if not argv:
        print(_help(commands))
        raise Misuse("a command is missing", "`uml up` is the first one on a new machine")
    if argv[0] in ("-h", "--help", "help"):
        if argv[0] == "help" and argv[1:]:
            return _run([*argv[1:], "--help"])
        print(_help(commands))
        return 0
    if argv[0] == "--version":
        argv = ["version"]
    if argv[0] == "test":
        from uml.supervisor.cli.server import run_tests

        return run_tests(argparse.Namespace(rest=argv[1:]))
    if argv[0].startswith("-"):
        raise Misuse(f"a command comes before {argv[0]}", "`uml --help` lists them")
    if argv[0] not in commands.names:
        raise Misuse(unknown("command", argv[0], commands.names), "`uml --help` lists them all")
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "prompt") and not any(word.startswith("-") for word in rest):
        args.prompt += rest  # words after an option
    elif rest:
        raise not_understood(args.parser, rest)
    code: int = args.run(args)
    return code


def build() -> tuple[Parser, Commands]:
    """The whole grammar."""
    from uml.supervisor.cli import (
        backends,
        fitness,
        listing,
        loading,
        logs,
        measuring,
        profiles,
        pulling,
        run,
        selftest,
        server,
        settings,
        watching,
    )

    parser = Parser(prog=program(), add_help=False)
    commands = Commands(parser)
    for module in (
        server,
        run,
        listing,
        profiles,
        pulling,
        loading,
        logs,
        backends,
        fitness,
        settings,
        measuring,
        selftest,
        watching,
    ):
        module.register(commands)
    return parser, commands


def _help(commands: Commands) -> str:
    groups = [
        (title, {name: commands.help[name] for name in names}) for title, names in _GROUPS.items()
    ]
    return overview(groups)
