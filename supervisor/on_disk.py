"""A model's files as they lie on disk now: cheap to look at, nothing is parsed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFile
from uml.supervisor.formats import files, format_of

#: How the error of a file begins that the system does not let us read.
UNREADABLE = "cannot be read: "
#: A broken file that changed this recently may still be being written.
_FRESH_S = 5.0
#: Header bytes that, with the size, tell one model file from another.
_HASHED = 1 << 20


def look(path: str) -> tuple[ModelFile | None, str | None]:
    """(the model's files as they are now, what is missing of them); None when nothing is there."""
    missing = None
    try:
        paths = files(path)
    except InvalidModel as e:
        paths, missing = (path,), e.message
    found = []
    for part in paths:
        try:
            found.append(os.stat(part))
        except FileNotFoundError:
            if not missing:
                return None, None
        except OSError as e:
            missing = f"{UNREADABLE}{e.strerror}"
    file = ModelFile(
        paths=paths,
        format=format_of(path),
        size_bytes=sum(s.st_size for s in found),
        mtime_ns=max((s.st_mtime_ns for s in found), default=0),
    )
    return file, missing


def may_heal(error: str | None, file: ModelFile) -> bool:
    """Whether a broken file may be complete by now, or readable, without its time stamp showing
    it."""
    if not error:
        return False
    fresh = abs(time.time() - file.mtime_ns / 1e9) < _FRESH_S
    return fresh or error.startswith(UNREADABLE)


def content_hash(file: ModelFile) -> str:
    """Of header and size; "" for a file that cannot be read."""
    digest = hashlib.sha256(str(file.size_bytes).encode())
    with contextlib.suppress(OSError), open(file.path, "rb") as f:
        digest.update(f.read(_HASHED))
        return digest.hexdigest()[:32]
    return ""
