"""Where a pull works and where its files go, and that nothing else is in the way there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uml.protocol.errors import BadRequest, Conflict, TooLarge
from uml.supervisor.formats import ending_of

#: Told (stage, bytes done, bytes in all or 0).
Report = Callable[[str, int, int], None]
#: Left free on the disk whatever is fetched.
_SPARE_BYTES = 256 << 20


@dataclass(frozen=True)
class Place:
    """work: for what is unfinished. models: where finished files go. name: what the user wants the
    file to be called."""

    work: Path
    models: Path
    name: str | None
    report: Report

    def targets(self, names: Sequence[str]) -> list[Path]:
        """Where files of these names go. Raises: BadRequest, when they cannot all be `name`."""
        if self.name and len(names) > 1:
            raise BadRequest(f"the model has {len(names)} files: it cannot be given one name")
        return [self.models / _with_ending(self.name or name, name) for name in names]

    def already(self, names: Sequence[str], same: Callable[[int, Path], bool]) -> list[Path] | None:
        """The finished files, when all are there already. same(index, path): whether a file that
        is there is the wanted one.

        Raises: Conflict, when another file has a name; BadRequest.
        """
        targets = self.targets(names)
        there = [(i, t) for i, t in enumerate(targets) if t.exists()]
        for i, target in there:
            if not same(i, target):
                raise Conflict(
                    f"{target.name} is there already and may be another model: remove it first "
                    "(`uml rm`), or give this one another name (`--name`)"
                )
        return targets if len(there) == len(targets) else None


def check_name(name: str) -> None:
    """Raises: BadRequest."""
    if "/" in name or "\0" in name or name.startswith(".") or not name.strip():
        raise BadRequest(f"{name!r} is no file name")


def _with_ending(wanted: str, name: str) -> str:
    """`wanted` with the ending by which `name`'s format is known: a file without one is GGUF."""
    ending = ending_of(name) or ".gguf"
    return wanted if wanted.lower().endswith(ending) else wanted + ending


def need_space(folder: Path, count: int) -> None:
    """Raises: TooLarge when `count` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < count + _SPARE_BYTES:
        raise TooLarge(
            f"the disk of {folder} has {free / 1e9:.1f} GB free, {count / 1e9:.1f} GB are needed "
            f"(and {_SPARE_BYTES / 1e9:.1f} GB stay free)"
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def same_content(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    return os.path.samefile(one, other) or file_sha256(one) == file_sha256(other)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file while in the block; it is gone afterwards.

    busy: what to say when another process has it; None = wait for it. Raises: Conflict.
    """
    while True:
        with path.open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise Conflict(str(busy)) from None
            # Its last holder may have deleted it, and a third made it anew, since it was opened.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(f.fileno())):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
