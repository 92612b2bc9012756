"""GGUF models: facts from the header, shards, what kind of model it is.

Source of the key names: ggml's docs/gguf.md and llama.cpp's llama-arch.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats.gguf_header import MAGIC, Counted, Header, Tensor, read_header
from uml.supervisor.formats.gguf_layers import DIFFUSION, ENCODERS, read_layers
from uml.supervisor.formats.layers import Layers, number
from uml.supervisor.formats.shards import files, head

__all__ = ["ENDINGS", "MAGIC", "files", "head", "is_model", "read_facts"]

ENDINGS: tuple[str, ...] = (".gguf",)

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
#: `general.type` of files that belong to a model and are none.
_PARTS = {"adapter": "a LoRA adapter", "imatrix": "an importance matrix"}
_RANK_POOLING = 4


def is_model(name: str, beside: Collection[str]) -> bool:
    del beside
    return name.lower().endswith(ENDINGS)


def read_facts(path: str) -> ModelFacts:
    """Facts of the model at `path`, all its shards' tensors included.

    Raises: InvalidModel with the reason; OSError.
    """
    parts = files(path)
    header = read_header(parts[0])
    tensors = [t for part in parts[1:] for t in read_header(part).tensors]
    return _facts(header, [*header.tensors, *tensors])


def _facts(header: Header, tensors: list[Tensor]) -> ModelFacts:
    meta = header.metadata
    arch = str(meta.get("general.architecture", ""))[:64]
    if not arch:
        raise InvalidModel("corrupt: general.architecture is missing")
    if part := _PARTS.get(str(meta.get("general.type"))):
        raise InvalidModel(f"{part}, which is no model of its own")
    if not tensors:
        raise InvalidModel("no model: the file holds no tensors")

    def key(name: str, default: Any = 0) -> Any:
        return meta.get(f"{arch}.{name}", default)

    kind = _type(arch, key)
    layers = read_layers(arch, key)
    template = meta.get("tokenizer.chat_template")
    has_template = isinstance(template, str)
    vocab = meta.get("tokenizer.ggml.tokens")
    return ModelFacts(
        format="gguf",
        type=kind,
        arch=arch,
        tasks=_tasks(kind, has_template),
        name=str(meta.get("general.name", ""))[:200],
        quantization=_quantization(meta, tensors),
        parameters=sum(t.elements for t in tensors),
        context_length=number(key("context_length")),
        embedding_length=number(key("embedding_length")),
        feed_forward_length=number(key("feed_forward_length")),
        vocab_size=_length(vocab) or number(key("vocab_size")),
        block_count=number(key("block_count")),
        head_count=number(key("attention.head_count")),
        head_count_kv=layers.head_count_kv,
        key_length=layers.key_length,
        value_length=layers.value_length,
        sliding_window=layers.window,
        swa_layers=layers.windowed,
        weights_bytes=sum(t.size_bytes for t in tensors),
        embedding_bytes=sum(
            t.size_bytes for t in tensors if t.name in ("token_embd.weight", "output.weight")
        ),
        recurrent=layers.recurrent,
        chat_template=template if has_template else None,
        license=str(meta.get("general.license", ""))[:200],
        extra={
            k: v
            for k, v in {
                "keeps_nothing": arch in ENCODERS or arch in DIFFUSION,
                "gated": any(
                    t.name.endswith(("ffn_gate.weight", "gate_exps.weight")) for t in tensors
                ),
                "active_feed_forward": _active(key),
                **_window_lengths(layers),
                "state_bytes": layers.state_bytes,
                "rope_scaling": key("rope.scaling.type", ""),
                **(_projector(key) if kind == "projector" else {}),
            }.items()
            if v
        },
    )


def _window_lengths(layers: Layers) -> dict[str, int]:
    """Per head, where windowed layers have heads of another size."""
    lengths = {"key": layers.window_key_length, "value": layers.window_value_length}
    if not layers.window or tuple(lengths.values()) == (layers.key_length, layers.value_length):
        return {}
    return {f"window_{name}_length": length for name, length in lengths.items()}


def _active(key: Callable[..., Any]) -> int:
    """Feed-forward values of one token: of the dense layers, or of the experts that are used."""
    used, each = number(key("expert_used_count")), number(key("expert_feed_forward_length"))
    dense = number(key("feed_forward_length"))
    return max(dense, used * (each or dense) + number(key("expert_shared_feed_forward_length")))


def _projector(key: Callable[..., Any]) -> dict[str, Any]:
    """What turns images or sound into a model's embeddings. Source: llama.cpp's clip-impl.h."""
    senses = [s for s in ("vision", "audio") if key(f"has_{s}_encoder", False) is True]
    lengths = (number(key(f"{sense}.projection_dim")) for sense in senses)
    return {
        "modalities": senses,
        "projection_dim": max(lengths, default=0),
        "encoders": {sense: _encoder(sense, key) for sense in senses},
    }


def _encoder(sense: str, key: Callable[..., Any]) -> dict[str, Any]:
    """What `estimates/projector` needs to know of one."""
    return {
        "kind": str(key(f"{sense}.projector_type", key("projector_type", "")))[:64],
        "width": number(key(f"{sense}.embedding_length")),
        "forward": number(key(f"{sense}.feed_forward_length")),
        "heads": number(key(f"{sense}.attention.head_count")),
        "image_size": number(key(f"{sense}.image_size")),
        "patch_size": number(key(f"{sense}.patch_size")),
        "merge": number(key(f"{sense}.spatial_merge_size")),
        "windows": bool(number(key(f"{sense}.n_wa_pattern"))),
    }


def _length(value: Any) -> int:
    if isinstance(value, Counted):
        return value.length
    return len(value) if isinstance(value, list) else 0


def _type(arch: str, key: Callable[..., Any]) -> str:
    if arch == "clip":
        return "projector"
    pooling = number(key("pooling_type"))
    if pooling == _RANK_POOLING:
        return "rerank"
    sees_all = key("attention.causal", True) is False and arch not in DIFFUSION
    return "embedding" if arch in ENCODERS or pooling or sees_all else "llm"


def _tasks(kind: str, has_template: bool) -> tuple[str, ...]:
    if kind == "llm":
        return ("chat", "complete") if has_template else ("complete",)
    return {"embedding": ("embed",), "rerank": ("rerank",)}.get(kind, ())


def _quantization(meta: dict[str, Any], tensors: list[Tensor]) -> str:
    """The file's own word for it, else the type most of its bytes are of."""
    file_type = meta.get("general.file_type")
    label = _FILE_TYPES.get(file_type, "-") if isinstance(file_type, int) else "-"
    if label != "-":
        return label
    sizes: Counter[str] = Counter()
    for t in tensors:
        sizes[t.type] += t.size_bytes
    return sizes.most_common(1)[0][0]
