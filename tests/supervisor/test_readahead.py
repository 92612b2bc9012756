"""Files are in the page cache before anybody loads them."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from pathlib import Path

import pytest

from tests.supervisor.house import house, until
from uml.supervisor.readahead import ReadAhead

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux only")
_SIZE = 8 << 20


def cached(path: Path) -> float:
    """The share of a file's pages that are in memory. Source: mincore(2)."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    with path.open("r+b") as f, mmap.mmap(f.fileno(), 0) as view:
        found = (ctypes.c_ubyte * pages)()
        begin = ctypes.c_char.from_buffer(view)
        length = ctypes.c_size_t(len(view))
        assert ctypes.CDLL(None).mincore(ctypes.byref(begin), length, found) == 0
        del begin
    return sum(page & 1 for page in found) / pages


def on_disk_only(path: Path) -> Path:
    path.write_bytes(b"x" * _SIZE)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if cached(path) > 0.5:
        pytest.skip("this file system keeps what it is told to drop (tmpfs?)")
    return path


async def test_files_are_read_whole(tmp_path: Path) -> None:
    first, second = on_disk_only(tmp_path / "a"), on_disk_only(tmp_path / "b")
    ahead = ReadAhead()
    ahead.begin([str(first), str(tmp_path / "gone"), str(second)], 3 * _SIZE)
    await until(lambda: cached(first) == cached(second) == 1.0)
    await ahead.close()


async def test_what_memory_has_no_room_for_is_not_read(tmp_path: Path) -> None:
    path = on_disk_only(tmp_path / "a")
    ahead = ReadAhead()
    ahead.begin([str(path)], _SIZE - 1)
    await ahead.close()
    assert cached(path) < 0.5


async def test_nothing_is_read_after_the_end(tmp_path: Path) -> None:
    path = on_disk_only(tmp_path / "a")
    ahead = ReadAhead()
    await ahead.close()
    ahead.begin([str(path)], 2 * _SIZE)
    assert cached(path) < 0.5


async def test_model_is_read_while_another_one_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, ...]] = []
    monkeypatch.setattr(ReadAhead, "begin", lambda self, paths, room: read.append(tuple(paths)))
    async with house(tmp_path, max_loaded=1) as h:
        a, b = h.model("a"), h.model("b")
        await h.ask(a)
        read.clear()
        busy = asyncio.create_task(h.ask(a, "slow=0.02 x", 30))
        await until(lambda: h.worker("a")["busy"] == 1)
        asked = [asyncio.create_task(h.ask(b)) for _ in range(3)]
        await until(lambda: b.file.paths in read)
        assert not busy.done()
        await asyncio.gather(busy, *asked)
        assert read == [b.file.paths], "once for each load"
