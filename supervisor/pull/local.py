"""A model that is on this machine already: linked where the disk allows it, else copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from uml.protocol.errors import BadRequest
from uml.supervisor.formats import gguf
from uml.supervisor.pull.web import need_space

Report = Callable[[str, int, int], None]


def fetch(path: Path, work: Path, report: Report) -> list[Path]:
    """All files of the model at `path`. Raises: BadRequest, InvalidModel (a shard is missing)."""
    if path.is_dir():
        raise BadRequest(f"{path} is a folder: give the model's file (its first part)")
    found = []
    for part in map(Path, gguf.shards(str(path))):
        target = work / part.name
        target.unlink(missing_ok=True)
        size = part.stat().st_size
        try:
            os.link(os.path.realpath(part), target)
        except OSError:
            need_space(work, size)
            shutil.copyfile(part, target)
        report(part.name, size, size)
        found.append(target)
    return found
