"""A worker's standard error: its lines as they come, the last ones in memory, all in a file."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path


class WorkerLog:
    """Appends to `path` and starts it anew, keeping one old file, when it grows over `limit`.
    heard: told each whole line."""

    def __init__(
        self,
        path: Path | None,
        *,
        heard: Callable[[str], None] | None = None,
        lines: int = 500,
        limit: int = 4 << 20,
    ) -> None:
        self._path, self._limit, self._heard = path, limit, heard
        self._lines: deque[str] = deque(maxlen=lines)
        self._partial = b""
        self._file = None
        self.total = 0
        if path is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        self.total += len(data)
        *whole, rest = (self._partial + data).split(b"\n")
        # A line without an end must not grow without one.
        self._partial = rest[-8192:]
        for raw in whole:
            line = raw.decode(errors="replace")
            self._lines.append(line)
            if self._heard:
                self._heard(line)
        if self._file and self._path:
            with contextlib.suppress(OSError):
                self._file.write(data)
                self._file.flush()
                if self._file.tell() > self._limit:
                    self._file.close()
                    self._path.replace(self._path.with_suffix(".log.1"))
                    self._file = self._path.open("ab")

    def tail(self, count: int = 50) -> list[str]:
        """The last `count` lines, an unfinished one included."""
        last = [self._partial.decode(errors="replace")] if self._partial.strip() else []
        return [*self._lines, *last][-count:]

    def drop_last(self, start: str) -> bool:
        """Take back the last line when it begins with `start`."""
        if self._lines and self._lines[-1].startswith(start):
            self._lines.pop()
            return True
        return False

    def close(self) -> None:
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
