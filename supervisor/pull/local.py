"""A model that is on this machine already: linked where the disk allows it, else copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from uml.protocol.errors import BadRequest
from uml.supervisor import formats
from uml.supervisor.pull.place import Place, need_space, same_content


def fetch(path: Path, place: Place) -> list[Path]:
    """All files of the model at `path`. Raises: BadRequest, InvalidModel (a shard is missing)."""
    if formats.format_of(str(path)) == "safetensors" or (path / "config.json").exists():
        raise BadRequest(
            f"{path} belongs to a model that is a folder: move or link the folder into "
            f"{place.models}, or name the one it lies in as `model_dirs` in the configuration"
        )
    if path.is_dir():
        raise BadRequest(f"{path} is a folder: give the model's file (its first part)")
    parts = [Path(part) for part in formats.files(str(path))]
    names = [part.name for part in parts]
    if there := place.already(names, lambda i, target: same_content(target, parts[i])):
        return there
    found = []
    for part in parts:
        target = place.work / part.name
        target.unlink(missing_ok=True)
        size = part.stat().st_size
        try:
            os.link(os.path.realpath(part), target)
        except OSError:
            need_space(place.work, size)
            shutil.copyfile(part, target)
        place.report(part.name, size, size)
        found.append(target)
    return found
