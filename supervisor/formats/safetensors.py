"""Hugging Face models: a folder with config.json and the weights as safetensors.

Weights are `model.safetensors`, or shards with an index of which tensor is where. A model is called
as its folder is.

Source: transformers' names of files (`SAFE_WEIGHTS_NAME` and others) and of configuration keys.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats import shards
from uml.supervisor.formats.hf_layers import language, named, read_layers
from uml.supervisor.formats.layers import number
from uml.supervisor.formats.safetensors_header import BITS, Tensor, read_header
from uml.supervisor.formats.shards import head

__all__ = ["ENDINGS", "files", "head", "is_model", "read_facts"]

ENDINGS: tuple[str, ...] = (".safetensors",)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_TOKENIZER = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
#: What else belongs to a model, where it is there.
_BESIDE = (
    *(_INDEX, _TOKENIZER, _TEMPLATE, "chat_template.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "preprocessor_config.json"),
    *("processor_config.json", "modules.json", "quantize_config.json"),
)
#: The index of a model of 60 layers with 256 experts each has 9 MB.
_MAX_JSON = 64 << 20
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float": "F32", "half": "F16"}
#: Packed numbers of a quantised matrix, and what its other tensors end in.
_PACKED = ("I32", "U8", "I8")
_SCALES = ("scales", "zeros", "g_idx", "scale", "scale_inv", "absmax", "quant_map", "shape")
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "word_embeddings.weight")
_ENDS_OF_LLMS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def is_model(name: str, beside: Collection[str]) -> bool:
    """Only names that libraries load by themselves: others are adapters, copies, image models."""
    del beside
    return _WEIGHTS.fullmatch(name) is not None


def files(path: str) -> tuple[str, ...]:
    """Weights, config.json, what else belongs to it. Raises: InvalidModel: one is missing."""
    folder = os.path.dirname(path)
    config = os.path.join(folder, _CONFIG)
    weights = shards.files(path)
    if not os.path.exists(config):
        raise InvalidModel(f"{_CONFIG} is missing beside {os.path.basename(path)}")
    there = (os.path.join(folder, name) for name in _BESIDE)
    return (*weights, config, *(p for p in there if os.path.exists(p)))


def read_facts(path: str) -> ModelFacts:
    """Raises: InvalidModel with the reason; OSError."""
    parts = [p for p in files(path) if p.endswith(ENDINGS)]
    folder = os.path.dirname(path)
    config = _read(os.path.join(folder, _CONFIG))
    tensors = [t for part in parts for t in read_header(part)]
    if not tensors:
        raise InvalidModel("no model: the file holds no tensors")
    index = os.path.join(folder, _INDEX)
    if len(parts) > 1 and os.path.exists(index):
        _check_index(_read(index), {t.name for t in tensors})
    return _facts(config, tensors, _template(folder))


def _read(path: str) -> dict[str, Any]:
    name = os.path.basename(path)
    with open(path, "rb") as f:
        raw = f.read(_MAX_JSON + 1)
    if len(raw) > _MAX_JSON:
        raise InvalidModel(f"{name} is larger than any known one")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InvalidModel(f"{name} is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise InvalidModel(f"{name} is no JSON object")
    return found


def _check_index(index: Mapping[str, Any], there: set[str]) -> None:
    listed = index.get("weight_map")
    missing = sorted(set(listed) - there) if isinstance(listed, dict) else []
    if missing:
        raise InvalidModel(
            f"incomplete: {len(missing)} tensors that {_INDEX} names are in no file, "
            f"{missing[0][:80]!r} among them"
        )


def _template(folder: str) -> str | None:
    """The chat template, which has a file of its own or is in the tokenizer's."""
    own = os.path.join(folder, _TEMPLATE)
    if os.path.exists(own):
        with open(own, encoding="utf-8", errors="replace") as f:
            return f.read(_MAX_JSON)
    tokenizer = os.path.join(folder, _TOKENIZER)
    said = _read(tokenizer).get("chat_template") if os.path.exists(tokenizer) else None
    if isinstance(said, list):  # several, by name
        said = next((t.get("template") for t in said if isinstance(t, dict)), None)
    return said if isinstance(said, str) else None


def _facts(whole: dict[str, Any], tensors: list[Tensor], template: str | None) -> ModelFacts:
    config = language(whole)
    kind = _type(whole)
    layers = read_layers(config)
    count = len(layers.head_count_kv)
    if kind in ("llm", "multimodal") and not (count and layers.key_length):
        raise InvalidModel(f"{_CONFIG} does not say how many layers and heads the model has")
    by_type: Counter[str] = Counter()
    for t in tensors:
        by_type[t.type] += t.size_bytes
    bits = _bits(config)
    return ModelFacts(
        format="safetensors",
        type=kind,
        arch=str(whole.get("model_type") or _class(whole))[:64],
        tasks=_tasks(kind, bool(template)),
        quantization=_quantization(config, bits, by_type),
        parameters=sum(_parameters(t, bits) for t in tensors),
        context_length=named(config, "context"),
        embedding_length=named(config, "width"),
        feed_forward_length=named(config, "forward") or 4 * named(config, "width"),
        vocab_size=named(config, "vocab"),
        block_count=count,
        head_count=named(config, "heads"),
        head_count_kv=layers.head_count_kv,
        key_length=layers.key_length,
        value_length=layers.value_length,
        sliding_window=layers.window,
        swa_layers=layers.windowed,
        weights_bytes=sum(by_type.values()),
        embedding_bytes=sum(t.size_bytes for t in tensors if t.name.endswith(_EMBEDDINGS)),
        recurrent=layers.recurrent,
        chat_template=template,
        extra={
            k: v
            for k, v in {
                "dtype": _dtype(config, by_type),
                "bytes_by_type": dict(by_type),
                "quantised": bool(bits or config.get("quantization_config")),
                "keeps_nothing": kind in ("embedding", "rerank") and not _looks_back(whole),
                "active_feed_forward": _active(config),
                "state_bytes": layers.state_bytes,
            }.items()
            if v
        },
    )


def _class(config: Mapping[str, Any]) -> str:
    """The first of `architectures`."""
    said = config.get("architectures")
    return str(said[0]) if isinstance(said, list) and said else ""


def _looks_back(config: Mapping[str, Any]) -> bool:
    """A generating model that was made to give vectors has keys and values all the same."""
    return "num_key_value_heads" in config or _class(config).endswith("ForCausalLM")


def _type(config: Mapping[str, Any]) -> str:
    name = _class(config)
    if not name and not config.get("model_type"):
        raise InvalidModel(f"{_CONFIG} names no architecture")
    if any(f"{sense}_config" in config for sense in ("vision", "audio", "thinker")):
        return "multimodal" if name.endswith(_ENDS_OF_LLMS) else "vision"
    if name.endswith("ForSequenceClassification"):
        return "rerank"
    if "Whisper" in name or name.endswith(("ForSpeechSeq2Seq", "ForCTC")):
        return "stt"
    if name.endswith(_ENDS_OF_LLMS):
        return "llm"
    if name.endswith(("ForMaskedLM", "Model")) and "image_size" not in config:
        return "embedding"
    return "vision" if "image_size" in config or "num_channels" in config else "llm"


def _tasks(kind: str, has_template: bool) -> tuple[str, ...]:
    if kind in ("llm", "multimodal"):
        return ("chat", "complete") if has_template else ("complete",)
    known = {"embedding": "embed", "rerank": "rerank", "stt": "transcribe"}
    return (known[kind],) if kind in known else ()


def _dtype(config: Mapping[str, Any], by_type: Counter[str]) -> str:
    """The type that libraries compute in by default: as config.json says, else that of the file's
    unquantised tensors."""
    said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    floats = [t for t, _ in by_type.most_common() if t in _FLOATS.values()]
    return _FLOATS.get(said) or (floats[0] if floats else "F32")


def _bits(config: Mapping[str, Any]) -> int:
    """Of a quantised weight; 0 = not said."""
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return 0
    if said.get("load_in_4bit") is True or said.get("quant_method") in ("mxfp4", "nvfp4"):
        return 4
    if said.get("load_in_8bit") is True:
        return 8
    groups = said.get("config_groups")  # compressed-tensors
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and (bits := number(weights.get("num_bits"))):
            return bits
    return number(said.get("bits")) or number(said.get("w_bit"))


def _parameters(tensor: Tensor, bits: int) -> int:
    """Weights in a tensor: packed ones counted singly, scales and zeros not."""
    if not bits or tensor.name.endswith(_EMBEDDINGS):
        return tensor.elements
    if tensor.name.endswith(_SCALES):
        return 0
    if tensor.type in _PACKED and bits < BITS[tensor.type]:
        return tensor.elements * BITS[tensor.type] // bits
    return tensor.elements


def _quantization(config: Mapping[str, Any], bits: int, by_type: Counter[str]) -> str:
    """AWQ-4bit, FP8, BF16 ...: the method, else the type most bytes are of."""
    said = config.get("quantization_config")
    if not isinstance(said, dict) or not said.get("quant_method"):
        return by_type.most_common(1)[0][0]
    method = str(said["quant_method"])[:32]
    label = {"bitsandbytes": "bnb", "compressed-tensors": "ct"}.get(method, method).upper()
    return f"{label}-{bits}bit" if bits and not re.search(r"\d$", label) else label


def _active(config: Mapping[str, Any]) -> int:
    """Feed-forward values of one token: of the dense layers, or of the experts that are used."""
    dense = named(config, "forward")
    used = named(config, "experts_used")
    each = named(config, "expert_forward") or dense
    shared = number(config.get("n_shared_experts")) * each
    shared += number(config.get("shared_expert_intermediate_size"))
    return max(dense, used * each + shared)
