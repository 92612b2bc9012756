"""Progress of long work in a terminal or a log, without a dependency."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30


class Progress:
    """Call it with (stage, fraction or None). A terminal gets one line that is redrawn, anything
    else gets a line per stage and per tenth. `close()` ends the line."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._stage = ""
        self._tenth = -1
        self._since = time.monotonic()

    def __call__(self, stage: str, fraction: float | None) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._tenth, self._since = stage, -1, time.monotonic()
            if not self._live:
                self._write(f"{stage} ...\n")
        if self._live:
            self._write(f"\r\x1b[K{stage} {self._bar(fraction)}")
        elif fraction is not None and int(fraction * 10) > max(self._tenth, 0):
            self._tenth = int(fraction * 10)
            self._write(f"{stage} {fraction:.0%} after {time.monotonic() - self._since:.0f} s\n")

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
