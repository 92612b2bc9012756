"""What a file on disk is: one module per format, each with `read_facts(path)`.

Only headers are read. A file that is broken is refused here with its reason, before any worker is
spent on it (some libraries crash on such files).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats import fake, gguf

#: File name's ending -> what reads its facts.
READERS: dict[str, Callable[[str], ModelFacts]] = {
    ".gguf": gguf.read_facts,
    ".fake.json": fake.read_facts,
}


def is_model(name: str) -> bool:
    """Whether a file of this name could be a model."""
    return name.lower().endswith(tuple(READERS))


def read_facts(path: str) -> ModelFacts:
    """Facts from the header of the model at `path` (a sharded one: its first shard).

    Raises: InvalidModel with the reason; FileNotFoundError.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    for ending, reader in READERS.items():
        if path.lower().endswith(ending):
            return reader(path)
    with open(path, "rb") as f:
        if f.read(4) == gguf.MAGIC:  # blobs of other programs' stores have no ending
            return gguf.read_facts(path)
    raise InvalidModel(f"{os.path.basename(path)} is of no format known here")
