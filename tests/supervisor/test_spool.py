"""Bodies that wait on disk: bounded, nameless, gone with whoever held them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uml.protocol.errors import TooLarge, Unavailable
from uml.supervisor.spool import SMALL_BYTES, Spool, Spooled

MB = 1 << 20


def whole(body: Spooled, step: int = 100_000) -> bytes:
    pieces, offset = [], 0
    while piece := body.read_at(offset, step):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


async def test_small_body_touches_no_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", MB)
    with spool.body(MB) as body:
        await body.write(b"a" * 1000)
        await body.seal()
        assert whole(body) == b"a" * 1000
        assert not (tmp_path / "spool").exists()


async def test_large_body_reads_back_in_any_pieces_and_again(tmp_path: Path) -> None:
    data = os.urandom(3 * SMALL_BYTES + 17)
    spool = Spool(tmp_path / "spool", 4 * MB)
    with spool.body(4 * MB) as body:
        for start in range(0, len(data), 10_000):
            await body.write(data[start : start + 10_000])
        await body.seal()
        assert body.size == len(data) == spool.used_bytes
        assert whole(body) == data
        assert whole(body, 7777) == data
        assert not list((tmp_path / "spool").iterdir()), "the file has no name"
    assert spool.used_bytes == 0
    assert body.read_at(0, 10) == b"", "a worker that still asks gets nothing"


async def test_body_over_its_own_limit_is_413_and_gives_its_room_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 4 * MB)
    with pytest.raises(TooLarge, match="max_upload"):
        with spool.body(MB) as body:
            for _ in range(20):
                await body.write(b"x" * 100_000)
    assert spool.used_bytes == 0


async def test_all_bodies_together_are_capped_with_a_word_on_retrying(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB)
    with spool.body(MB) as one, spool.body(MB) as other:
        await one.write(b"x" * (MB - 10))
        with pytest.raises(Unavailable) as caught:
            await other.write(b"x" * 11)
        assert caught.value.retry_after_s
        await other.write(b"x" * 10)


async def test_disk_that_cannot_be_written_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file/spool", 4 * MB)
    with spool.body(4 * MB) as body:
        with pytest.raises(Unavailable, match="cannot be kept"):
            await body.write(b"x" * MB)
