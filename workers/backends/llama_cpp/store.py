"""Conversations on disk: the KV state of a finished turn, in a file of its own.

A worker ends by SIGKILL, so what the next one is to find has to lie there before the turn's end is
told. A state is therefore written straight into a mapped file: once the copy is done its bytes are
in the page cache, which no kill takes away, and the kernel brings them to disk when it likes.

A file: `MAGIC`, u32 tokens, u64 bytes of the state, the tokens as i32, padding to a page, the
state; all little-endian.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from uml.workers.backends.llama_cpp.prefix import Parked

_MAGIC = b"umlkv001"
_HEAD = struct.Struct("<8sIQ")
_PAGE = 4096
_MOST_TOKENS = 1 << 24


class Store:
    """folder: of one model as one library computes it; made when the first state comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def known(self) -> list[Parked]:
        """What lies there, least recently used first. A file that is not whole is deleted."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                parked = _open(path)
                if parked is None:
                    path.unlink(missing_ok=True)
                else:
                    found.append((path.stat().st_mtime_ns, parked))
        return [parked for _, parked in sorted(found, key=lambda pair: pair[0])]

    def room(self, tokens: list[int], size: int) -> Parked | None:
        """A state's place, to be filled and then `keep`t; None when the disk has none for it."""
        start = _start(len(tokens))
        self._count += 1
        path = self._folder / f"{os.getpid()}-{self._count}.new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # Reserved, not only sized: writing to a mapped hole of a full disk is fatal.
                os.posix_fallocate(fd, 0, start + size)
                ids = np.array(tokens, "<i4").tobytes()
                os.pwrite(fd, _HEAD.pack(_MAGIC, len(tokens), size) + ids, 0)
                with os.fdopen(fd, "r+b", closefd=False) as file:
                    state = np.memmap(file, np.uint8, "r+", start, (size,))
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
        except OSError:
            return None
        return Parked(tokens, state, size, path)

    def keep(self, parked: Parked) -> None:
        """Its state is complete: from now on others may find it."""
        if parked.path is not None:
            name = parked.path.with_suffix(f".{os.urandom(6).hex()}.kv")
            with contextlib.suppress(OSError):
                os.rename(parked.path, name)
                parked.path = name

    @staticmethod
    def touch(parked: Parked) -> None:
        if parked.path is not None:
            with contextlib.suppress(OSError):
                os.utime(parked.path)

    @staticmethod
    def drop(parked: Parked) -> None:
        if parked.path is not None:
            with contextlib.suppress(OSError):
                parked.path.unlink()


def _open(path: Path) -> Parked | None:
    if path.suffix != ".kv":
        return None
    try:
        with path.open("rb") as file:
            magic, count, size = _HEAD.unpack(file.read(_HEAD.size))
            whole = magic == _MAGIC and 0 < count < _MOST_TOKENS and size > 0
            if not whole or os.fstat(file.fileno()).st_size != _start(count) + size:
                return None
            tokens: list[int] = np.fromfile(file, "<i4", count).tolist()
            state: Any = np.memmap(file, np.uint8, "r", _start(count), (size,))
    except (OSError, struct.error, ValueError):
        return None
    return Parked(tokens, state, size, path)


def _start(count: int) -> int:
    """Where the state begins."""
    return -(-(_HEAD.size + 4 * count) // _PAGE) * _PAGE
