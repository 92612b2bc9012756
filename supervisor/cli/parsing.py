"""The grammar of the command line: argparse, with our error messages and an example per command."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from typing import Any, NoReturn

from uml.supervisor.cli.failures import Misuse, in_their_words, program
from uml.supervisor.units import parse_duration

#: A command: takes the parsed arguments, returns the exit code.
Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Raises `Misuse` with the nearest right word instead of printing usage and exiting."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        if example:
            lines = "\n".join(f"  {in_their_words(line)}" for line in example.splitlines())
            kwargs["epilog"] = f"{'examples' if lines.count(chr(10)) else 'example'}:\n{lines}"
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False
        self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        hint = f"`{self.prog} --help` shows how it is used"
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            known = [word.strip(" '") for word in choice[2].split(",")]
            raise Misuse(unknown("command" if "COMMAND" in message else "choice", choice[1], known))
        raise Misuse(message, hint)


def unknown(what: str, word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"unknown {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def not_understood(parser: Parser, words: list[str]) -> Misuse:
    """For words that no option or argument takes."""
    option = next((w.partition("=")[0] for w in words if w.startswith("-")), "")
    hint = f"`{parser.prog} --help` lists the options"
    if not option:
        return Misuse(f"one word too many: {' '.join(words)}", hint)
    return Misuse(unknown("option", option, re.findall(r"--[a-z-]+", parser.format_help())), hint)


class Commands:
    """A place where commands are added: the program itself, or a command with subcommands."""

    def __init__(self, parser: Parser) -> None:
        self._actions = parser.add_subparsers(
            metavar="COMMAND", dest="command", parser_class=Parser, title="commands"
        )
        self.help: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        return list(self.help)

    def add(self, name: str, run: Run | None, summary: str, example: str, **kwargs: Any) -> Parser:
        """One command. run: None for one that only has subcommands."""
        self.help[name] = summary
        parser: Parser = self._actions.add_parser(
            name, help=summary, description=in_their_words(summary), example=example, **kwargs
        )
        parser.set_defaults(run=run or _needs_more(parser), parser=parser)
        return parser


def _needs_more(parser: Parser) -> Run:
    def run(_: argparse.Namespace) -> int:
        raise Misuse("a subcommand is missing", f"`{parser.prog} --help` lists them")

    return run


def remote_options(parser: argparse.ArgumentParser) -> None:
    """For commands that talk to a running supervisor."""
    parser.add_argument(
        "--url",
        metavar="URL",
        help="where the supervisor listens (UML_URL, else the configured address)",
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print data for programs")


def duration(text: str) -> float:
    """Argument type: seconds, "10m", "-1"."""
    try:
        return parse_duration(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, {e}") from None


def whole(low: int, high: int) -> Callable[[str], int]:
    """Argument type: a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return number

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Argument type: a number within bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return read


def overview(groups: list[tuple[str, dict[str, str]]]) -> str:
    """What `uml --help` prints: the commands by what they are for."""
    lines = [
        f"usage: {program()} COMMAND [options]",
        "",
        "One process per model, one OpenAI-compatible address, and every byte back after a swap.",
    ]
    width = max(len(name) for _, commands in groups for name in commands)
    for title, commands in groups:
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]
    lines += [
        "",
        f"`{program()} COMMAND --help` shows the options of a command and an example.",
        "UML_URL and UML_API_KEY lead to a supervisor elsewhere; UML_HOME is where state lives.",
        "Exit codes: 0 done, 1 failed, 2 misuse, 3 no supervisor reachable.",
        "",
        f"example:\n  {program()} up",
    ]
    return "\n".join(lines)
