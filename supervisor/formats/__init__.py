"""What a file on disk is: one module per format.

Only headers are read. A file that is broken is refused here with its reason, before any worker is
spent on it (some libraries crash on such files).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Protocol

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats import fake, gguf, piper, safetensors, whisper


class Format(Protocol):
    """What a format's module has to offer."""

    #: Of its files' names, the main file's first.
    ENDINGS: tuple[str, ...]

    def is_model(self, name: str, beside: Collection[str]) -> bool:
        """Whether a file could be one, by its name and those of the files beside it."""

    def head(self, name: str) -> str:
        """The name of the file that stands for the model which a file is a part of."""

    def files(self, path: str) -> tuple[str, ...]:
        """All of the model's files, main file first. Raises: InvalidModel when one is missing."""

    def read_facts(self, path: str) -> ModelFacts:
        """Raises: InvalidModel, OSError."""


#: `ModelFacts.format` -> its module.
FORMATS: dict[str, Format] = {
    "gguf": gguf,
    "fake": fake,
    "whisper": whisper,
    "piper": piper,
    "safetensors": safetensors,
}
#: Those of which a model is a folder, and is called as that is.
_FOLDERS = ("safetensors",)


def is_model(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a file of this name, with these beside it, could be a model."""
    return any(known.is_model(name, beside) for known in FORMATS.values())


def format_of(path: str) -> str:
    """The format of a model's file, by its name; blobs of other programs' stores have no ending
    and are GGUF."""
    name = os.path.basename(path).lower()
    return next((key for key, known in FORMATS.items() if name.endswith(known.ENDINGS)), "gguf")


def ending_of(name: str) -> str | None:
    """The ending by which a file's format is known."""
    endings = (e for known in FORMATS.values() for e in known.ENDINGS)
    return next((e for e in endings if name.lower().endswith(e)), None)


def title(path: str) -> str:
    """What the model at `path` is called where it lies: as its main file or its folder is."""
    folder, name = os.path.split(path)
    return os.path.basename(folder) if format_of(path) in _FOLDERS else name


def head(name: str) -> str:
    """The name of the file that stands for the model which a file is a part of."""
    return FORMATS[format_of(name)].head(name)


def files(path: str) -> tuple[str, ...]:
    """All files of the model at `path`, that one first. Raises: InvalidModel: one is missing."""
    return FORMATS[format_of(path)].files(path)


def read_facts(path: str) -> ModelFacts:
    """Facts from the header of the model at `path` (a sharded one: its first shard).

    Raises: InvalidModel with the reason; FileNotFoundError.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    if ending_of(path):
        return FORMATS[format_of(path)].read_facts(path)
    with open(path, "rb") as f:
        if f.read(4) == gguf.MAGIC:
            return gguf.read_facts(path)
    raise InvalidModel(f"{os.path.basename(path)} is of no format known here")
