"""Files on their way to a server and back: forms, and binary answers. No I/O with the server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uml.protocol.errors import BadRequest


class Form:
    """A multipart form of fields and one file.

    fields: values that are None are left out, lists are sent as `name[]`. file: a path, bytes, an
    open binary file, or (name, one of those). Raises: BadRequest, when it cannot be read.
    """

    def __init__(self, fields: Mapping[str, Any], file: Any) -> None:
        boundary = secrets.token_hex(16)
        self.media_type = f"multipart/form-data; boundary={boundary}"
        name, data = _read(file)
        parts: list[bytes] = []
        for key, value in fields.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if one is not None:
                    label = f"{key}[]" if isinstance(value, (list, tuple)) else key
                    parts.append(_head(boundary, f'name="{label}"') + _text(one).encode() + b"\r\n")
        safe = name.replace('"', "_").replace("\r", "_").replace("\n", "_")
        parts += [_head(boundary, f'name="file"; filename="{safe}"'), data]
        self.content = b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()])


class Binary(bytes):
    """A sound file that came whole."""

    @property
    def content(self) -> bytes:
        return bytes(self)

    def read(self) -> bytes:
        return bytes(self)

    def write_to_file(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_bytes(self)


def _head(boundary: str, disposition: str) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(file: Any) -> tuple[str, bytes]:
    """(name, bytes)."""
    name = ""
    if isinstance(file, tuple):
        name, file = str(file[0]), file[1]
    try:
        if isinstance(file, (str, os.PathLike)):
            return name or Path(file).name, Path(file).read_bytes()
        if isinstance(file, (bytes, bytearray, memoryview)):
            return name or "audio", bytes(file)
        return name or Path(str(getattr(file, "name", "audio"))).name, bytes(file.read())
    except OSError as e:
        raise BadRequest(f"{file} cannot be read: {e.strerror}") from e
    except (AttributeError, TypeError) as e:
        raise BadRequest("'file' has to be a path, bytes or a file opened as binary") from e
