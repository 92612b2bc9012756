"""Where large request bodies wait: on disk, in files without a name, under one cap for all.

A body comes in piece by piece before its request is admitted; there it can wait in a queue, and be
sent again when a worker dies, while the supervisor holds no more of it than one piece. A file
without a name is gone with whoever has it open, however that one ends.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from uml.protocol.errors import TooLarge, Unavailable

#: Bodies up to this size stay in memory.
SMALL_BYTES = 256 * 1024
#: Left free on the disk.
_SPARE_BYTES = 256 << 20


@dataclass(frozen=True)
class Held:
    """A body in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, count: int) -> bytes:
        return self.data[offset : offset + count]


class Spool:
    """The cap on all bodies together. folder: on a real disk; made when it is needed."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self._folder, self._cap = folder, cap_bytes
        self.used_bytes = 0

    def body(self, limit_bytes: int) -> Spooled:
        """A new, empty body that may grow to `limit_bytes`."""
        return Spooled(self, limit_bytes)

    def take(self, count: int) -> None:
        """Raises: Unavailable, when all bodies together are too large for now."""
        if self.used_bytes + count > self._cap:
            raise Unavailable(
                f"uploads that wait take {self.used_bytes / 1e6:.0f} MB and may take "
                f"{self._cap / 1e6:.0f} MB (`spool`): try again when they are done",
                retry_after_s=5.0,
            )
        self.used_bytes += count

    def give_back(self, count: int) -> None:
        self.used_bytes -= count

    def open(self) -> IO[bytes]:
        """Raises: Unavailable, when the disk is full or cannot be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stat = os.statvfs(self._folder)
            if stat.f_bavail * stat.f_frsize < _SPARE_BYTES:
                raise OSError(28, "no space left")
            return tempfile.TemporaryFile(dir=self._folder, buffering=0)
        except OSError as e:
            raise Unavailable(f"uploads cannot be kept in {self._folder}: {e.strerror}") from e


class Spooled:
    """One body (a `Body`). Within `with`; its bytes are gone after that.

    Written by one task: `write` pieces, then `seal`. What is collected in memory is written in
    pieces of `SMALL_BYTES`, in a thread, since a disk may make its writer wait.
    """

    def __init__(self, spool: Spool, limit_bytes: int) -> None:
        self._spool, self._limit = spool, limit_bytes
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._closed = False
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    def __enter__(self) -> Spooled:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def write(self, data: bytes | bytearray) -> None:
        """Raises: TooLarge; Unavailable, when there is no room for it on disk."""
        if self._size + len(data) > self._limit:
            raise TooLarge(f"the upload is larger than {self._limit / 1e6:.0f} MB (`max_upload`)")
        self._spool.take(len(data))
        self._size += len(data)
        self._buffer += data
        if len(self._buffer) > SMALL_BYTES:
            await self._spill()

    async def seal(self) -> None:
        """All of it is here."""
        if self._file and self._buffer:
            await self._spill()

    async def _spill(self) -> None:
        if self._file is None:
            self._file = self._spool.open()
        data, self._buffer = self._buffer, bytearray()
        try:
            # With a descriptor of its own: this task may be cancelled, and we closed, meanwhile.
            await asyncio.to_thread(_write_all, os.dup(self._file.fileno()), data)
        except OSError as e:
            raise Unavailable(f"an upload cannot be kept: {e.strerror}") from e

    def read_at(self, offset: int, count: int) -> bytes:
        if self._closed:
            return b""
        if self._file is None:
            return bytes(self._buffer[offset : offset + count])
        return os.pread(self._file.fileno(), count, offset)

    def close(self) -> None:
        """Its disk space is free again."""
        if self._closed:
            return
        self._closed = True
        self._spool.give_back(self._size)
        self._buffer = bytearray()
        if self._file:
            self._file.close()


def _write_all(fd: int, data: bytes | bytearray) -> None:
    """Write and close."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
