"""What commands print: tables for people, plain aligned text for pipes, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli.failures import in_their_words

if TYPE_CHECKING:
    from rich.table import Table

_GAP = "   "


@dataclass(frozen=True)
class Cell:
    """A text with a style ("red", "dim", "bold green") that only a terminal shows."""

    text: str
    style: str = ""


def terminal() -> bool:
    """Whether stdout is a terminal that understands more than text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def coloured() -> bool:
    return terminal() and "NO_COLOR" not in os.environ


def clean(text: str) -> str:
    """One line without anything that commands a terminal: names come from files of others."""
    return "".join(c if c.isprintable() else "?" for c in text)


def clean_text(text: str) -> str:
    """Like `clean`, for running text: line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "" for c in text)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def say(text: str, style: str = "") -> None:
    """A line of running text on stdout."""
    print(paint(text, style))


def note(text: str) -> None:
    """A line beside the data: on stderr, so that a pipe does not get it."""
    sys.stdout.flush()
    print(in_their_words(text), file=sys.stderr, flush=True)


_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


def paint(text: str, style: str) -> str:
    if not style or not coloured():
        return text
    codes = ";".join(str(_CODES[word]) for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def table(
    titles: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, right: Sequence[str] = ()
) -> None:
    """Columns under capital titles. right: titles of columns aligned to the right. On a terminal
    the last column folds, everywhere else each row is one line."""
    cells = _cells(rows)
    if terminal():
        from rich.console import Console

        Console(highlight=False, soft_wrap=False).print(drawing(titles, rows, right=right))
        return
    columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in titles]
    widths = [
        max([len(title), *(len(c.text) for c in column)])
        for title, column in zip(titles, columns, strict=True)
    ]
    for line in [[Cell(title) for title in titles], *cells]:
        padded = (
            c.text.rjust(w) if t in right else c.text.ljust(w)
            for t, c, w in zip(titles, line, widths, strict=True)
        )
        print(_GAP.join(padded).rstrip())


def _cells(rows: Sequence[Sequence[Cell | str]]) -> list[list[Cell]]:
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    return [[Cell(clean(c.text), c.style) for c in row] for row in cells]


def drawing(
    titles: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, right: Sequence[str] = ()
) -> Table:
    """What `table` shows on a terminal."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for title in titles:
        last = title == titles[-1]
        drawn.add_column(
            Text(title),
            justify="right" if title in right else "left",
            no_wrap=not last,
            overflow="fold" if last else "ellipsis",
        )
    for row in _cells(rows):
        drawn.add_row(*(Text(c.text, style=c.style) for c in row))
    return drawn


def facts(pairs: Sequence[tuple[str, Cell | str]]) -> None:
    """Names and values, one a line; a value of several lines is indented under itself."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        cell = value if isinstance(value, Cell) else Cell(value)
        first, *rest = cell.text.splitlines() or [""]
        print(f"{paint(name.ljust(width), 'bold')}{_GAP}{paint(clean(first), cell.style)}".rstrip())
        for line in rest:
            print(f"{' ' * width}{_GAP}{paint(clean(line), cell.style)}".rstrip())
