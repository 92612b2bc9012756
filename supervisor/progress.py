"""Progress of long work in a terminal or a log, without a dependency."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 30


class Progress:
    """Call it with (stage, fraction or None). A terminal gets one line that is redrawn, anything
    else gets a line per stage, and one per tenth where a stage is long. `close()` ends the line."""

    def __init__(
        self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._stage = ""
        self._tenth = 0
        self._clock = clock
        self._since = self._told = 0.0

    def __call__(self, stage: str, fraction: float | None) -> None:
        now = self._clock()
        if stage != self._stage:
            self.close()
            self._stage, self._tenth = stage, 0
            self._since = self._told = now
            if not self._live:
                self._write(f"{stage} ...\n")
        if self._live:
            self._write(f"\r\x1b[K{stage} {self._bar(fraction)}")
        elif fraction is not None and int(fraction * 10) > self._tenth and now - self._told > 2:
            self._tenth, self._told = int(fraction * 10), now
            self._write(f"{stage} {fraction:.0%} after {now - self._since:.0f} s\n")

    def close(self) -> None:
        if self._stage and self._live:
            self._write("\n")
        self._stage = ""

    def _bar(self, fraction: float | None) -> str:
        if fraction is None:
            return "..."
        full = round(max(0.0, min(1.0, fraction)) * _WIDTH)
        return f"[{'#' * full}{'.' * (_WIDTH - full)}] {fraction:4.0%}"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
