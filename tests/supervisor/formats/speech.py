"""Writes small Whisper and Piper files for tests: the right form, and nothing learned."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: n_vocab, audio ctx, state, head, layer, text ctx, state, head, layer, mels, ftype.
TINY = (51864, 8, 64, 2, 1, 8, 64, 2, 1, 4, 1)


def whisper_tensors(audio_layers: int = 1, text_layers: int = 1) -> list[str]:
    """The names whisper.cpp looks for."""
    found = [
        "encoder.positional_embedding",
        *(f"encoder.conv{n}.{p}" for n in (1, 2) for p in ("weight", "bias")),
        *(f"{n}.{p}" for n in ("encoder.ln_post", "decoder.ln") for p in ("weight", "bias")),
        "decoder.positional_embedding",
        "decoder.token_embedding.weight",
    ]
    parts = ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias")
    for half, count in (("encoder", audio_layers), ("decoder", text_layers)):
        for i in range(count):
            for attention in ("attn", "cross_attn") if half == "decoder" else ("attn",):
                names = [f"{attention}.{p}" for p in (*parts, "out.weight", "out.bias")]
                names += [f"{attention}_ln.{p}" for p in ("weight", "bias")]
                found += [f"{half}.blocks.{i}.{n}" for n in names]
            for n in ("mlp_ln", "mlp.0", "mlp.2"):
                found += [f"{half}.blocks.{i}.{n}.{p}" for p in ("weight", "bias")]
    return found


def whisper(
    sizes: tuple[int, ...] = TINY, tensors: Iterable[str] | None = None, words: int = 3
) -> bytes:
    """Every tensor is 32 float16 values."""
    out = struct.pack("<12i", 0x67676D6C, *sizes)
    out += struct.pack("<2i", sizes[9], 2) + bytes(4 * 2 * sizes[9])
    out += struct.pack("<i", words) + b"".join(struct.pack("<i", 2) + b"ab" for _ in range(words))
    for name in whisper_tensors() if tensors is None else tensors:
        out += struct.pack("<4i", 1, len(name), 1, 32) + name.encode() + bytes(64)
    return out


CONFIG: dict[str, Any] = {
    "audio": {"sample_rate": 22050, "quality": "medium"},
    "espeak": {"voice": "en-us"},
    "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
    "phoneme_type": "espeak",
    "phoneme_id_map": {"_": [0], "a": [1]},
    "num_symbols": 2,
    "num_speakers": 1,
    "speaker_id_map": {},
    "language": {"code": "en_US"},
    "dataset": "joe",
}


def onnx(size: int = 100) -> bytes:
    """A protobuf message of a version, a producer and a large field."""
    field = struct.pack("<B", size & 0x7F | 0x80) + struct.pack("<B", size >> 7)
    return b"\x08\x08\x12\x07pytorch\x3a" + field + bytes(size)


def voice(folder: Path, name: str = "en_US-joe-medium", size: int = 1000, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(onnx(size))
    (folder / f"{name}.onnx.json").write_text(json.dumps(CONFIG | config))
    return path
