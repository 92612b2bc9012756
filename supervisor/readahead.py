"""Reads a model's files into the kernel's page cache while its room is being made.

A load maps the weights, so what is in the cache already it need not wait for. The kernel reads by
itself, without copying anything to us: cached pages cost nothing, and what is read can be dropped
again when memory is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

#: Seconds until it is known that the room is not made at once; then there is no time to gain.
_PATIENCE_S = 0.05
#: The kernel reads no more than its read-ahead window (128 KiB by default) for one request to do
#: so, whatever its length says: a single one brings 3 % of a file of 250 MB. Source: Linux,
#: mm/readahead.c, force_page_cache_ra.
_STEP = 128 * 1024


class ReadAhead:
    """One reading at a time: who comes meanwhile reads when he loads."""

    def __init__(self) -> None:
        self._reading: asyncio.Future[None] | None = None
        self._stopped = False

    def soon(self, paths: Sequence[str], room_bytes: int, waits: Callable[[], bool]) -> None:
        """Begin to read `paths`, if somebody `waits` for them still in a moment."""

        def look() -> None:
            if waits():
                self.begin(paths, room_bytes)

        asyncio.get_running_loop().call_later(_PATIENCE_S, look)

    def begin(self, paths: Sequence[str], room_bytes: int) -> None:
        """Start to read `paths`, unless they are larger than `room_bytes`, what the page cache may
        take: then they would push each other out."""
        if self._stopped or (self._reading and not self._reading.done()):
            return
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        loop = asyncio.get_running_loop()
        self._reading = loop.run_in_executor(None, self._read, tuple(paths), room_bytes)

    async def close(self) -> None:
        self._stopped = True
        if self._reading:
            await self._reading

    def _read(self, paths: Sequence[str], room_bytes: int) -> None:
        for path in paths:
            with contextlib.suppress(OSError):  # the load will say what is wrong with it
                fd = os.open(path, os.O_RDONLY)
                try:
                    size = os.fstat(fd).st_size
                    room_bytes -= size
                    for offset in range(0, size, _STEP) if room_bytes >= 0 else ():
                        if self._stopped:
                            return
                        os.posix_fadvise(fd, offset, _STEP, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)
