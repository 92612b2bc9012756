"""Makes a small draft model out of a larger model: its first layers, with the same vocabulary."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from tests.supervisor.formats.ggufs import text
from uml.supervisor.formats.gguf_header import TYPES, read_header

_ALIGNED = 32
_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
_LAYER = re.compile(r"blk\.(\d+)\.")


def cut(source: Path, target: Path, layers: int) -> Path:
    """Write the first `layers` layers of the GGUF file `source` to `target`."""
    header, data = read_header(str(source)), source.read_bytes()
    kept = [t for t in header.tensors if not (m := _LAYER.match(t.name)) or int(m[1]) < layers]
    # Everything before the first tensor's entry is kept byte for byte, but for two numbers.
    start = data.index(text(header.tensors[0].name))
    pairs = bytearray(data[24:start])
    key = text(f"{header.metadata['general.architecture']}.block_count")
    struct.pack_into("<I", pairs, pairs.index(key) + len(key) + 4, layers)
    entries, blobs, offset = b"", [], 0
    first = _up(start + sum(24 + len(t.name.encode()) + 8 * len(t.shape) for t in header.tensors))
    for t in kept:
        entries += text(t.name) + struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape)
        entries += struct.pack("<IQ", _NUMBERS[t.type], offset)
        blob = data[first + t.offset : first + t.offset + t.size_bytes]
        blobs.append(blob + bytes(_up(len(blob)) - len(blob)))
        offset += len(blobs[-1])
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(kept), len(header.metadata))
    out = head + bytes(pairs) + entries
    target.write_bytes(out + bytes(_up(len(out)) - len(out)) + b"".join(blobs))
    return target


def _up(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED
