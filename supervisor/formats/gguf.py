"""GGUF models: facts from the header, shards, sliding windows.

Source of the key names: ggml's docs/gguf.md and llama.cpp's llama-arch.cpp.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats.gguf_header import MAGIC, Counted, Header, Tensor, read_header

__all__ = ["MAGIC", "read_facts", "shards"]

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf$", re.IGNORECASE)

#: general.file_type -> label. Source: llama.h `llama_ftype`.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
}
_ENCODERS = {
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "neo-bert",
    "modern-bert",
    "eurobert",
    "t5encoder",
    "gemma-embedding",
}
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_HYBRID = {"jamba", "falcon-h1", "granitehybrid", "lfm2", "lfm2moe", "plamo2", "nemotron_h"}
#: Every n-th layer sees everything, the others a window; True = the dense one comes first.
#: Source: llama.cpp's `set_swa_pattern` calls.
_SWA_PATTERNS: dict[str, tuple[int, bool]] = {
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gemma-embedding": (6, False),
    "cohere2": (4, False),
    "olmo2": (4, False),
    "exaone4": (4, False),
    "gpt-oss": (2, False),
    "smallthinker": (4, True),
    "modern-bert": (3, True),
}
_RANK_POOLING = 4


def shards(path: str) -> tuple[str, ...]:
    """All files of the model that `path` belongs to, first one first.

    Raises: InvalidModel when one is missing.
    """
    folder, name = os.path.split(path)
    match = _SHARD.match(name)
    if not match:
        return (path,)
    total = int(match["total"])
    # The set is closed by its own names: at most 99,999, and each has to exist.
    found = []
    for number in range(1, total + 1):
        part = os.path.join(folder, f"{match['stem']}-{number:05d}-of-{match['total']}.gguf")
        if not os.path.exists(part):
            raise InvalidModel(f"part {number} of {total} is missing: {os.path.basename(part)}")
        found.append(part)
    return tuple(found)


def shard_number(name: str) -> int | None:
    """Which shard a file is by its name; None for a model in one file."""
    match = _SHARD.match(name)
    return int(match["number"]) if match else None


def read_facts(path: str) -> ModelFacts:
    """Facts of the model at `path`, all its shards' tensors included.

    Raises: InvalidModel with the reason; OSError.
    """
    parts = shards(path)
    header = read_header(parts[0])
    tensors = [t for part in parts[1:] for t in read_header(part).tensors]
    return _facts(header, [*header.tensors, *tensors])


def _facts(header: Header, tensors: list[Tensor]) -> ModelFacts:
    meta = header.metadata
    arch = str(meta.get("general.architecture", ""))
    if not arch:
        raise InvalidModel("corrupt: general.architecture is missing")

    def key(name: str, default: Any = 0) -> Any:
        return meta.get(f"{arch}.{name}", default)

    layers = _number(key("block_count"))
    heads = _number(_first(key("attention.head_count")))
    embedding = _number(key("embedding_length"))
    kv_heads = key("attention.head_count_kv", heads)
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads] * min(layers, 4096)
    head_size = embedding // heads if heads else 0
    window = _number(_first(key("attention.sliding_window")))
    kind = _type(arch, meta)
    template = meta.get("tokenizer.chat_template")
    has_template = isinstance(template, str)
    vocab = meta.get("tokenizer.ggml.tokens")
    return ModelFacts(
        format="gguf",
        type=kind,
        arch=arch,
        tasks=_tasks(kind, has_template),
        name=str(meta.get("general.name", "")),
        quantization=_quantization(meta, tensors),
        parameters=sum(t.elements for t in tensors),
        context_length=_number(key("context_length")),
        embedding_length=embedding,
        feed_forward_length=_number(_first(key("feed_forward_length"))),
        vocab_size=_length(vocab) or _number(key("vocab_size")),
        block_count=layers,
        head_count=heads,
        head_count_kv=tuple(_number(h) for h in per_layer),
        key_length=_number(key("attention.key_length", head_size)),
        value_length=_number(key("attention.value_length", head_size)),
        sliding_window=window,
        swa_layers=_swa_layers(arch, layers, window, key("attention.sliding_window_pattern", None)),
        weights_bytes=sum(t.size_bytes for t in tensors),
        embedding_bytes=sum(
            t.size_bytes for t in tensors if t.name in ("token_embd.weight", "output.weight")
        ),
        recurrent=arch in _RECURRENT or arch in _HYBRID,
        chat_template=template if has_template else None,
        license=str(meta.get("general.license", "")),
        extra={"has_encoder": arch in _ENCODERS or arch == "t5"},
    )


def _number(value: Any) -> int:
    """A metadata number; anything else, or a negative one, counts as absent."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 53 else 0


def _first(value: Any) -> Any:
    """Some models give one number per layer: the largest stands for all."""
    if isinstance(value, list):
        return max((_number(v) for v in value), default=0)
    return value


def _length(value: Any) -> int:
    if isinstance(value, Counted):
        return value.length
    return len(value) if isinstance(value, list) else 0


def _type(arch: str, meta: dict[str, Any]) -> str:
    if arch == "clip":
        return "projector"
    if meta.get(f"{arch}.pooling_type") == _RANK_POOLING:
        return "rerank"
    if arch in _ENCODERS or meta.get(f"{arch}.pooling_type"):
        return "embedding"
    return "llm"


def _tasks(kind: str, has_template: bool) -> tuple[str, ...]:
    if kind == "llm":
        return ("chat", "complete") if has_template else ("complete",)
    return {"embedding": ("embed",), "rerank": ("rerank",)}.get(kind, ())


def _quantization(meta: dict[str, Any], tensors: list[Tensor]) -> str:
    label = _FILE_TYPES.get(_number(meta.get("general.file_type", 1 << 20)))
    if label:
        return label
    sizes: Counter[str] = Counter()
    for t in tensors:
        sizes[t.type] += t.size_bytes
    return sizes.most_common(1)[0][0] if sizes else ""


def _swa_layers(arch: str, layers: int, window: int, pattern: Any) -> tuple[bool, ...]:
    """Which layers see only the window."""
    count = min(layers, 4096)
    if not window:
        return (False,) * count
    if isinstance(pattern, list):
        return tuple(bool(p) for p in pattern[:count]) + (False,) * (count - len(pattern))
    every, dense_first = _SWA_PATTERNS.get(arch, (0, False))
    if isinstance(pattern, int) and pattern > 0:
        every = pattern
    if not every:
        return (False,) * count
    if dense_first:
        return tuple(i % every != 0 for i in range(count))
    return tuple(i % every < every - 1 for i in range(count))
