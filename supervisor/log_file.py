"""The log of a supervisor in the background: a file of bounded size, whoever writes to it.

Such a supervisor has the file as its standard output and error, so that what libraries and the
interpreter print is in it too. It looks at the file now and then; one that has grown too long gets
another name, and both streams go on into a new one. As Docker's `max-size` and `max-file` do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from pathlib import Path

#: Bytes after which a file is followed by another; how many there are in all.
LIMIT_BYTES, FILES = 10 << 20, 3
_LOOK_S = 1.0


def log_path(home: Path) -> Path:
    """The newest file."""
    return home / "logs" / "supervisor.log"


def files(path: Path) -> list[Path]:
    """Those that there are, the newest first."""
    names = [path, *(_older(path, number) for number in range(1, FILES))]
    return [name for name in names if name.exists()]


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines, through all files. Raises: OSError."""
    lines: deque[str] = deque()
    for file in files(path):
        missing = count - len(lines)
        if missing <= 0:
            break
        text = file.read_text(encoding="utf-8", errors="replace")
        lines.extendleft(reversed(text.splitlines()[-missing:]))
    return list(lines)


def rotate(path: Path) -> None:
    """Rename what there is, so that `path` is free. Raises: OSError."""
    for number in range(FILES - 1, 0, -1):
        source = _older(path, number - 1) if number > 1 else path
        if source.exists():
            source.replace(_older(path, number))


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class LogFile:
    """Keeps `path` bounded where the streams are that file; does nothing where they are not.
    streams: descriptors."""

    def __init__(
        self, path: Path, limit: int = LIMIT_BYTES, streams: tuple[int, ...] = (1, 2)
    ) -> None:
        self._path, self._limit, self._streams = path, limit, streams

    async def watch(self) -> None:
        """Look until cancelled; at once over where no stream is that file."""
        while self._mine():
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> bool:
        """Whether another file was begun. Where that cannot be, writing goes on."""
        with contextlib.suppress(OSError):
            if (mine := self._mine()) and self._path.stat().st_size > self._limit:
                self._begin(mine)
                return True
        return False

    def _mine(self) -> list[int]:
        """The streams that are the file."""
        with contextlib.suppress(OSError):
            status = self._path.stat()
            return [s for s in self._streams if os.path.samestat(os.fstat(s), status)]
        return []

    def _begin(self, streams: list[int]) -> None:
        rotate(self._path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        new = os.open(self._path, flags, 0o666)
        try:
            for stream in streams:
                os.dup2(new, stream, inheritable=stream in (1, 2))
        finally:
            os.close(new)
