"""Tells when one of a few files may have changed, without looking at them again and again.

Linux's inotify watches their folders, because editors replace files; a change in a folder is
followed by a look at the files themselves, a few times a second at most. Elsewhere nothing is told.
Source: inotify(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path

_CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x8, 0x40 | 0x80, 0x100, 0x200
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
#: Between two looks; it also lets an editor that writes in pieces come to its end.
_CALM_S = 0.25


class FileWatch:
    """paths: the files, which need not exist; a link is followed. changed: called in the event
    loop when a file has come, gone or has another content or time."""

    def __init__(self, paths: Iterable[Path], changed: Callable[[], None]) -> None:
        self._paths, self._changed = list(paths), changed
        self._seen = self._look()
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "inotify_init1"):
            return
        self._fd = libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:  # too many of them on this machine
            return
        wanted = _CLOSE_WRITE | _MOVED | _CREATE | _DELETE
        for folder in {p.parent for path in self._paths for p in (path, path.resolve())}:
            libc.inotify_add_watch(self._fd, os.fsencode(folder), wanted)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._told)

    @property
    def works(self) -> bool:
        """Whether changes are told on this system."""
        return self._fd >= 0

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found

    def _told(self) -> None:
        """Something happened in a folder: listen no more for a moment, then look."""
        self._loop.remove_reader(self._fd)
        self._timer = self._loop.call_later(_CALM_S, self._calm)

    def _calm(self) -> None:
        self._timer = None
        try:
            while os.read(self._fd, 1 << 16):
                pass
        except BlockingIOError:
            pass
        self._loop.add_reader(self._fd, self._told)
        now = self._look()
        if now != self._seen:
            self._seen = now
            self._changed()

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._timer:
            self._timer.cancel()
        else:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
