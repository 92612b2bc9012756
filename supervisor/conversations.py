"""Where workers keep the states of conversations between two loads, and how much of it there may
be: `UML_HOME/conversations/<hash of the model's file>/...`.

Workers write and read the files; here is what no single worker can know: the limit for all.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


class Conversations:
    """limit: bytes for all models together; 0 = nothing is kept."""

    def __init__(self, home: Path, limit: int) -> None:
        self._folder, self.limit = home / "conversations", limit

    def folder(self, content_hash: str) -> Path | None:
        """A model's place; None when nothing is to be kept."""
        return self._folder / content_hash if self.limit > 0 and content_hash else None

    def forget(self, content_hash: str) -> None:
        """The model is gone."""
        if content_hash:
            shutil.rmtree(self._folder / content_hash, ignore_errors=True)

    def prune(self) -> int:
        """Delete what was not used for longest until the limit is kept; bytes deleted."""
        found = []
        for path in self._folder.glob("*/*/*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        too_much = sum(size for _, size, _ in found) - self.limit
        deleted = 0
        for _, size, path in sorted(found, key=lambda f: f[0]):
            if deleted >= too_much:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                deleted += size
        return deleted
