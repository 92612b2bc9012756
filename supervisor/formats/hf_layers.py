"""What each layer of a Hugging Face model keeps between tokens, by its config.json. Pure.

Source: the configuration classes of transformers (names, and what is meant where one is absent)
and the model definitions of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uml.protocol.errors import InvalidModel
from uml.supervisor.formats.layers import Layers, number

#: Where a multimodal model keeps what concerns its language model.
_INNER = ("text_config", "llm_config", "language_config", "thinker_config")
_MAX_LAYERS = 4096
#: The same thing has many names.
NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv"),
    "head": ("head_dim", "attention_head_dim", "kv_channels", "d_kv"),
    "forward": ("intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "ffn_dim"),
    "expert_forward": ("moe_intermediate_size",),
    "experts_used": ("num_experts_per_tok", "moe_topk", "top_k_experts", "num_experts_per_token"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "context": (
        *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len"),
        "seq_length",
    ),
}
#: What transformers' classes mean where config.json leaves it out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "gemma2": {"sliding_window": 4096},
}
#: Every n-th layer sees everything, the others a window.
_PATTERNS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "llama4_text": 4,
}
#: Words of `layer_types` and the like for layers that see only a window, or keep a state.
_WINDOWED = {"sliding_attention", "chunked_attention", "sliding_window", "local"}
_RECURRENT = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "m"}
_NEITHER = {"mlp", "moe", "-", "e"}
#: No layer has keys and values, each has both those and a state.
_ALL_RECURRENT = {"mamba", "mamba2", "falcon_mamba"}
_BOTH = {"falcon_h1"}


def language(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of config.json concerns the language model, over what it says of the whole."""
    found = dict(config)
    for _ in range(2):  # Qwen's omni models have it two levels down
        inner = next((found[k] for k in _INNER if isinstance(found.get(k), dict)), None)
        if inner is None:
            break
        found = {**{k: v for k, v in found.items() if k not in _INNER}, **inner}
    return _DEFAULTS.get(str(found.get("model_type")), {}) | {
        k: v for k, v in found.items() if v is not None
    }


def named(config: Mapping[str, Any], what: str) -> int:
    """The number that goes by one of several names; 0 = absent."""
    return next((n for key in NAMES[what] if (n := number(config.get(key)))), 0)


def read_layers(config: Mapping[str, Any]) -> Layers:
    """config: as `language` gives it. Raises: InvalidModel: too many layers."""
    count = named(config, "layers")
    if count > _MAX_LAYERS:
        raise InvalidModel(f"corrupt: config.json speaks of {count} layers")
    heads = named(config, "heads")
    head = named(config, "head") or (named(config, "width") // heads if heads else 0)
    kinds = _kinds(config, count)
    kind = str(config.get("model_type"))
    states = [k in _RECURRENT for k in kinds]
    if kind in _ALL_RECURRENT or kind in _BOTH:
        states = [True] * count
    window, windowed = _windows(config, kinds, count)
    latent = number(config.get("kv_lora_rank"))
    if latent:  # one row of what keys and values are made from, for all heads
        kv_heads, key, value = 1, latent + number(config.get("qk_rope_head_dim")), 0
    else:
        kv_heads, key, value = _kv_heads(config, heads), head, head
        value = number(config.get("v_head_dim")) or head
    own = count - number(config.get("num_kv_shared_layers")) or count
    per_layer = tuple(
        0 if layer >= own or kinds[layer] in _NEITHER or (states[layer] and kind not in _BOTH)
        else kv_heads
        for layer in range(count)
    )  # fmt: skip
    return Layers(
        head_count_kv=per_layer,
        windowed=windowed,
        window=window,
        key_length=key,
        value_length=value,
        window_key_length=key,
        window_value_length=value,
        recurrent=any(states),
        state_bytes=sum(states) * _state_bytes(config),
    )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    inner = config.get("attn_config")  # MPT's
    said = number(inner.get("kv_n_heads")) if isinstance(inner, dict) else 0
    return said or named(config, "kv_heads") or heads


def _kinds(config: Mapping[str, Any], count: int) -> list[str]:
    """What each layer is, in the words of its configuration; "" = attention to everything."""
    listed = next(
        (v for k in ("layer_types", "layers_block_type", "hybrid_override_pattern")
         if isinstance(v := config.get(k), (list, str)) and v), None
    )  # fmt: skip
    if listed is not None:
        kinds = [str(k).lower() for k in listed[:count]]
        return kinds + [""] * (count - len(kinds))
    full: set[int] | None = None
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict) and isinstance(linear.get("full_attn_layers"), list):
        full = {number(n) - 1 for n in linear["full_attn_layers"]}  # Kimi counts from 1
    elif isinstance(config.get("attn_layer_indices"), list):
        full = {number(n) for n in config["attn_layer_indices"]}
    elif isinstance(config.get("attn_type_list"), list):
        full = {i for i, n in enumerate(config["attn_type_list"]) if n}
    elif every := number(config.get("attn_layer_period")):
        full = set(range(number(config.get("attn_layer_offset")), count, every))
    elif every := number(config.get("full_attention_interval")):
        full = set(range(every - 1, count, every))
    return ["" if full is None or i in full else "linear_attention" for i in range(count)]


def _windows(
    config: Mapping[str, Any], kinds: Sequence[str], count: int
) -> tuple[int, tuple[bool, ...]]:
    """(tokens of the window, whether each layer sees only that)."""
    window = number(config.get("sliding_window")) or number(config.get("attention_chunk_size"))
    if not window or config.get("use_sliding_window") is False:
        return 0, (False,) * count
    if any(k in _WINDOWED for k in kinds):
        windowed = tuple(k in _WINDOWED for k in kinds)
    elif every := _pattern(config):
        windowed = tuple((layer + 1) % every != 0 for layer in range(count))
    elif any(kinds):  # all are listed and none has a window
        windowed = (False,) * count
    else:
        first = number(config.get("max_window_layers")) if "use_sliding_window" in config else 0
        windowed = tuple(layer >= first for layer in range(count))
    return (window if any(windowed) else 0), windowed


def _pattern(config: Mapping[str, Any]) -> int:
    said = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if isinstance(said, str):  # EXAONE 4: "LLLG"
        return len(said)
    interval = number(said) or number(config.get("no_rope_layer_interval"))
    return interval or _PATTERNS.get(str(config.get("model_type")), 0)


def _state_bytes(config: Mapping[str, Any]) -> int:
    """Of one sequence in one recurrent layer: the convolution's and the state's values, counted as
    32-bit floats."""

    def get(*names: str) -> int:
        return next((n for name in names if (n := number(config.get(name)))), 0)

    width = named(config, "width")
    if cached := get("conv_L_cache"):  # LFM2
        return 4 * width * max(cached - 1, 0)
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict):  # Kimi
        heads, head = number(linear.get("num_heads")), number(linear.get("head_dim"))
        kernel = number(linear.get("short_conv_kernel_size"))
        return 4 * heads * head * (3 * max(kernel - 1, 0) + head)
    if heads := get("linear_num_value_heads"):  # Qwen3-Next
        keys = get("linear_num_key_heads") * get("linear_key_head_dim")
        values = heads * get("linear_value_head_dim")
        kernel = max(get("linear_conv_kernel_dim") - 1, 0)
        return 4 * (kernel * (2 * keys + values) + values * get("linear_key_head_dim"))
    kernel = max(get("mamba_d_conv", "conv_kernel", "d_conv") - 1, 0)
    state = get("mamba_d_state", "ssm_state_size", "state_size", "d_state")
    heads = get("mamba_n_heads", "mamba_num_heads")
    head = get("mamba_d_head", "mamba_head_dim")
    expand = get("mamba_expand", "expand") or 2
    inner = heads * head or get("mamba_d_ssm", "intermediate_size_mamba") or expand * width
    mixed = inner + (2 * get("mamba_n_groups", "n_groups") * state if heads else 0)
    return 4 * (kernel * mixed + inner * state)
