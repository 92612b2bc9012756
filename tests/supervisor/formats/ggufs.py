"""Writes small GGUF files for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(v: Any) -> bytes:
    """type and value, the type chosen by Python's."""
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<Iq", 11, v) if v < 0 else struct.pack("<IQ", 10, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    inner = [value(x) for x in v]
    kind = inner[0][:4] if inner else struct.pack("<I", 4)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(v)) + b"".join(i[4:] for i in inner)


def gguf(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int, int]] | None = None,
    *,
    version: int = 3,
) -> bytes:
    """tensors: name -> (shape, ggml type, bytes of data)."""
    tensors = tensors or {}
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for k, v in metadata.items():
        out += text(k) + value(v)
    offset, data = 0, b""
    for name, (shape, kind, size) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", kind, offset)
        data += b"\x11" * (-(-size // 32) * 32)
        offset = len(data)
    return out + b"\0" * (-len(out) % 32) + data


LLAMA = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.block_count": 3,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS = {
    "token_embd.weight": ((64, 3), 0, 64 * 3 * 4),
    "blk.0.attn_q.weight": ((64, 64), 2, 64 * 64 // 32 * 18),
}


def write(path: Path, metadata: dict[str, Any] | None = None, **kw: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf(metadata or LLAMA, kw.pop("tensors", TENSORS), **kw))
    return path
