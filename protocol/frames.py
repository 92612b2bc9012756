"""Frames on the wire: u32 big-endian length, then one msgpack map. No I/O here.

A payload that would not fit (`PART_BYTES`) travels as `Part` messages, so that cancel and beats
interleave; `MAX_FRAME_BYTES` is the hard limit that bounds a reader's memory.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from uml.protocol.errors import ProtocolError

#: Payloads above this many bytes are split into parts.
PART_BYTES = 256 * 1024
#: No frame is larger. A peer that announces more is refused before a byte of it is buffered.
MAX_FRAME_BYTES = 4 * 1024 * 1024

_HEAD = struct.Struct(">I")


def encode(message: dict[str, Any], *, limit: int = MAX_FRAME_BYTES) -> bytes:
    """One frame holding `message`, a map of msgpack-able values.

    Raises: ProtocolError when it is not packable or larger than `limit` bytes.
    """
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as e:
        raise ProtocolError(f"cannot encode a message: {e}") from e
    if len(body) > limit:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {limit}")
    return _HEAD.pack(len(body)) + body


class Decoder:
    """Bytes in, maps out, in any split. Once it has raised it stays broken."""

    def __init__(self, *, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._broken: str | None = None

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame: non-zero at EOF means truncation."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[dict[str, Any]]:
        """All maps completed by `data`.

        Raises: ProtocolError on an oversized frame, garbage, or a body that is not a map.
        """
        if self._broken:
            raise ProtocolError(self._broken)
        buffer = self._buffer
        buffer += data
        found: list[dict[str, Any]] = []
        start = 0
        try:
            while len(buffer) - start >= 4:
                (size,) = _HEAD.unpack_from(buffer, start)
                if size > self._limit:
                    raise self._fail(f"a frame of {size} bytes is over the limit of {self._limit}")
                end = start + 4 + size
                if len(buffer) < end:
                    break
                found.append(self._unpack(bytes(buffer[start + 4 : end])))
                start = end
        finally:
            if start:
                del buffer[:start]
        return found

    def _unpack(self, body: bytes) -> dict[str, Any]:
        try:
            value = msgpack.unpackb(body, raw=False, strict_map_key=True)
        except Exception as e:  # msgpack raises a dozen kinds; all mean garbage
            raise self._fail(f"garbage in a frame of {len(body)} bytes: {type(e).__name__}") from e
        if not isinstance(value, dict):
            raise self._fail(f"a frame holds {type(value).__name__}, not a map")
        if not all(isinstance(key, str) for key in value):
            raise self._fail("a frame's keys are not all strings")
        return value

    def _fail(self, why: str) -> ProtocolError:
        self._broken = why
        self._buffer.clear()
        return ProtocolError(why)
