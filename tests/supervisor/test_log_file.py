"""The log of a server in the background is bounded, and nothing that was said last is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml.supervisor.log_file import FILES, LogFile, files, tail


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield stream
    finally:
        os.close(stream)


def test_files_are_few_and_what_was_said_last_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    with opened(path) as out, opened(path) as err:
        log = LogFile(path, limit=1000, streams=(out, err))
        begun = 0
        for number in range(500):
            os.write(out if number % 2 else err, f"line {number}\n".encode())
            begun += log.look()
    assert begun == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("supervisor.log", "supervisor.log.1", "supervisor.log.2"),
    ]
    assert sum(p.stat().st_size for p in files(path)) < FILES * 1020
    assert tail(path, 200) == [f"line {n}" for n in range(300, 500)]
    assert tail(path, 3) == ["line 497", "line 498", "line 499"]
    assert tail(path, 0) == []


def test_streams_that_are_elsewhere_are_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "supervisor.log", tmp_path / "other.log"
    path.write_text("x" * 5000)
    with opened(other) as stream:
        os.write(stream, b"y" * 5000)
        assert not LogFile(path, 1000, (stream,)).look()
        path.unlink()
        assert not LogFile(path, 1000, (stream,)).look(), "nor is a file missed"
    assert other.stat().st_size == 5000


def test_files_that_cannot_be_renamed_stop_nobody(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    path.with_name("supervisor.log.1").touch()
    path.with_name("supervisor.log.2").mkdir()
    (path.with_name("supervisor.log.2") / "in the way").touch()
    with opened(path) as stream:
        os.write(stream, b"x" * 2000)
        assert not LogFile(path, 1000, (stream,)).look()
        os.write(stream, b"and on\n")
    assert path.read_bytes().endswith(b"and on\n")


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=60),
    limit=st.integers(10, 200),
    count=st.integers(0, 80),
)
def test_tail_is_the_end_of_all_that_was_kept(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "supervisor.log"
    said = [f"{number}:{'x' * size}" for number, size in enumerate(sizes)]
    with opened(path) as stream:
        log = LogFile(path, limit, (stream,))
        for line in said:
            os.write(stream, f"{line}\n".encode())
            log.look()
    found = tail(path, count)
    assert found == said[len(said) - len(found) :]
    assert all(p.stat().st_size <= limit + 70 for p in files(path))
