"""Changes of a file are told, however it is written, and nothing is told without one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervisor.house import until
from uml.supervisor import filewatch
from uml.supervisor.filewatch import FileWatch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filewatch, "_CALM_S", 0.02)


def rewrite(path: Path) -> None:
    path.write_text("new one")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("new")
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


def appear(path: Path) -> None:
    path.with_name("second.toml").write_text("x")


@pytest.mark.parametrize("change", [rewrite, replace, remove, appear])
async def test_every_way_to_change_a_file_is_told(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path, told = tmp_path / "uml.toml", []
    path.write_text("old")
    watch = FileWatch([path, tmp_path / "second.toml"], lambda: told.append(1))
    try:
        change(path)
        await until(lambda: told)
    finally:
        watch.close()


async def test_a_linked_file_is_followed(tmp_path: Path) -> None:
    real, told = tmp_path / "real" / "uml.toml", []
    real.parent.mkdir()
    real.write_text("old")
    link = tmp_path / "uml.toml"
    link.symlink_to(real)
    watch = FileWatch([link], lambda: told.append(1))
    try:
        real.write_text("new one")
        await until(lambda: told)
    finally:
        watch.close()


async def test_several_writes_are_told_once_and_neighbours_not_at_all(tmp_path: Path) -> None:
    path, told = tmp_path / "uml.toml", []
    path.write_text("old")
    watch = FileWatch([path], lambda: told.append(1))
    try:
        for number in range(50):
            (tmp_path / f"neighbour{number}").write_text("x")
        looks = []
        look = watch._look
        watch._look = lambda: looks.append(1) or look()  # type: ignore[method-assign, func-returns-value]
        await until(lambda: looks)
        assert not told
        path.write_text("new one")
        path.write_text("new one, longer")
        await until(lambda: told)
        seen = len(looks)
        (tmp_path / "neighbour").write_text("x")
        await until(lambda: len(looks) > seen)
        assert len(told) == 1
    finally:
        watch.close()


async def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    watch = FileWatch([tmp_path / "nowhere" / "uml.toml"], lambda: None)
    await asyncio.sleep(0)
    watch.close()
    watch.close()


async def test_it_works_on_linux(tmp_path: Path) -> None:
    watch = FileWatch([tmp_path / "uml.toml"], lambda: None)
    assert watch.works == (os.uname().sysname == "Linux")
    watch.close()
