"""Writes Hugging Face folders for tests: real headers, no bytes of data behind them (holes)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uml.supervisor.formats.safetensors_header import BITS

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """(length and header, bytes of data)."""
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + BITS[kind] * math.prod(shape) // 8
        said[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(said).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, end


def write_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Path:
    raw, size = header(tensors)
    with path.open("wb") as f:
        f.write(raw)
        f.truncate(len(raw) + size)
    return path


def write(folder: Path, config: Any, tensors: Tensors, *, parts: int = 1) -> Path:
    """A model's folder; the path of its first file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        return write_file(folder / "model.safetensors", tensors)
    names = list(tensors)
    each = -(-len(names) // parts)
    where: dict[str, str] = {}
    for number in range(parts):
        mine = names[number * each : (number + 1) * each]
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in mine})
        where |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / f"model-00001-of-{parts:05d}.safetensors"


def llama(config: Mapping[str, Any], *, bias: bool = False, norms: int = 2) -> Tensors:
    """The tensors of a model of Llama's shape; with experts where the configuration has them."""
    width, forward = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    made: Tensors = {"model.embed_tokens.weight": ("BF16", (config["vocab_size"], width))}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            made[f"{stem}.self_attn.{name}_proj.weight"] = ("BF16", (count * head, width))
            if bias:
                made[f"{stem}.self_attn.{name}_proj.bias"] = ("BF16", (count * head,))
        made[f"{stem}.self_attn.o_proj.weight"] = ("BF16", (width, heads * head))
        for number in range(norms):
            made[f"{stem}.norm{number}.weight"] = ("BF16", (width,))
        experts = config.get("num_local_experts", 0)
        for expert in range(experts or 1):
            inner = f"{stem}.block_sparse_moe.experts.{expert}" if experts else f"{stem}.mlp"
            made[f"{inner}.gate_proj.weight"] = ("BF16", (forward, width))
            made[f"{inner}.up_proj.weight"] = ("BF16", (forward, width))
            made[f"{inner}.down_proj.weight"] = ("BF16", (width, forward))
        if experts:
            made[f"{stem}.block_sparse_moe.gate.weight"] = ("BF16", (experts, width))
    made["model.norm.weight"] = ("BF16", (width,))
    if not config.get("tie_word_embeddings"):
        made["lm_head.weight"] = ("BF16", (config["vocab_size"], width))
    return made


LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TINY = LLAMA3_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}
GEMMA2_9B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
#: As published: what is not there is what the library's class says.
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "image_size": 896, "num_hidden_layers": 27},
}
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"},
    "torch_dtype": "bfloat16",
}
