"""Models in several files: NAME-00001-of-00005.ENDING, as llama.cpp and Hugging Face name them."""

from __future__ import annotations

import os
import re

from uml.protocol.errors import InvalidModel

_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<ending>\.\w+)", re.IGNORECASE
)


def files(path: str) -> tuple[str, ...]:
    """All files of the model that `path` belongs to, first one first.

    Raises: InvalidModel when one is missing.
    """
    folder, name = os.path.split(path)
    match = _SHARD.fullmatch(name)
    if not match:
        return (path,)
    total = int(match["total"])
    # The set is closed by its own names: at most 99,999, and each has to exist.
    found = []
    for i in range(1, total + 1):
        part = os.path.join(folder, _part(match, i))
        if not os.path.exists(part):
            raise InvalidModel(f"part {i} of {total} is missing: {os.path.basename(part)}")
        found.append(part)
    return tuple(found)


def head(name: str) -> str:
    """The name of the first part of the model that a file is a part of."""
    match = _SHARD.fullmatch(name)
    return _part(match, 1) if match else name


def number(name: str) -> int | None:
    """Which shard a file is by its name; None for a model in one file."""
    match = _SHARD.fullmatch(name)
    return int(match["number"]) if match else None


def _part(match: re.Match[str], number: int) -> str:
    return f"{match['stem']}-{number:05d}-of-{match['total']}{match['ending']}"
