"""Progress of long work: bars on a terminal, a plain line now and then elsewhere. On stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import words
from uml.supervisor.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Without a terminal, one short-lived line at most this often.
_QUIET_S = 2.0


def live() -> bool:
    """Whether bars can be drawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Bars:
    """Context manager around rich's progress; subclasses say which columns."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._plain = Progress(sys.stderr)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the bars as they are: a terminal can show one set of them at a time."""
        if self._rich:
            self._rich.stop()
        self._rich = None
        self._plain.close()

    def _start(self, *columns: Any, transient: bool) -> RichProgress:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        drawn = RichProgress(*columns, console=Console(stderr=True), transient=transient)
        drawn.start()
        return drawn


class Steps(_Bars):
    """Call it with (stage, fraction or None): one line that follows the work, or, `kept`, one line
    per stage that stays."""

    def __init__(self, title: str = "", kept: bool = False) -> None:
        super().__init__()
        self._title, self._kept, self._stage = title, kept, ""
        self._said = time.monotonic()

    def __call__(self, stage: str, fraction: float | None) -> None:
        text = f"{self._title} {stage}".strip()
        if not live():
            if self._kept or time.monotonic() - self._said >= _QUIET_S:
                self._said = time.monotonic()
                self._plain(text, fraction)
            return
        if self._rich is None:
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._rich = self._start(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[share]}", markup=False),
                TimeElapsedColumn(),
                transient=not self._kept,
            )
        if text != self._stage:
            self._finish(self._stage)
        key = text if self._kept else ""
        if key not in self._tasks:
            self._tasks[key] = self._rich.add_task(text, total=None, share="")
        self._stage = text
        total = None if fraction is None else 1.0
        self._rich.update(
            self._tasks[key],
            description=text,
            total=total,
            completed=fraction or 0.0,
            share="" if fraction is None else f"{fraction:.0%}",
        )

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._finish(self._stage)
        super().__exit__(kind, *rest)

    def _finish(self, key: str) -> None:
        if self._rich and self._kept and key in self._tasks:
            self._rich.update(self._tasks[key], total=1.0, completed=1.0, share="done")


class Downloads(_Bars):
    """Call it with (stage, bytes done, bytes in all): a bar for every stage."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not live():
            known = f"{stage} ({words.size(total)})" if total else stage
            self._plain(known, done / total if total else None)
            return
        if self._rich is None:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._rich = self._start(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                transient=False,
            )
        if stage not in self._tasks:
            self._hide_endless()
            self._tasks[stage] = self._rich.add_task(stage, total=total or None)
        self._rich.update(self._tasks[stage], completed=done, total=total or None)

    def end(self) -> None:
        self._hide_endless()
        super().end()

    def _hide_endless(self) -> None:
        """A stage whose size nobody knew would go on moving after its end."""
        for task in self._rich.tasks if self._rich else ():
            if task.total is None and self._rich:
                self._rich.update(task.id, visible=False)
