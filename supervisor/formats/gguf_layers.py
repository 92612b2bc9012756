"""What each layer of a GGUF model keeps between tokens: keys and values, a window of them, a state.

Source: llama.cpp's `load_arch_hparams` of every architecture, llama-hparams.cpp, and the layer
filters of `llama_model::create_memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uml.supervisor.formats.layers import Layers, number

#: Sees whole texts at once and keeps nothing between them.
ENCODERS = {
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
}
#: Generates by diffusion: all of the text again at every step, so nothing is kept either.
DIFFUSION = {"dream", "llada", "llada-moe", "rnd1"}
#: A state instead of keys and values in all layers, in some, in the layers without KV heads.
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_INTERVAL = {"qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"}
_HYBRID = {
    "bailingmoe3",
    "falcon-h1",
    "glm5-next",
    "granitehybrid",
    "jamba",
    "kimi-k3",
    "kimi-linear",
    "lfm2",
    "lfm2moe",
    "nemotron_h",
    "nemotron_h_moe",
    "plamo2",
}
_MAX_LAYERS = 4096
#: Layers of gemma3n that have keys and values of their own.
_GEMMA3N_OWN = 20


@dataclass(frozen=True)
class _Window:
    """Every `every`-th layer sees everything, the last or the first of each group; 0 = none does.
    tokens: the window where the file does not say."""

    every: int
    dense_first: bool = False
    tokens: int = 0


_WINDOWS = {
    "afmoe": _Window(4),
    "cohere2": _Window(4),
    "cohere2moe": _Window(4, dense_first=True),
    "deepseek4": _Window(0),
    "exaone-moe": _Window(4, tokens=128),
    "exaone4": _Window(4),
    "gemma-embedding": _Window(6),
    "gemma2": _Window(2, tokens=4096),
    "gemma3": _Window(6),
    "gemma3n": _Window(5),
    "gpt-oss": _Window(2),
    "laguna": _Window(4, dense_first=True),
    "lfm2": _Window(0),
    "lfm2moe": _Window(0),
    "llama4": _Window(4, tokens=8192),
    "mellum": _Window(4),
    "modern-bert": _Window(3, dense_first=True),
    "muse-glimmer": _Window(4),
    "olmo2": _Window(4),
    "plamo3": _Window(8),
    "smallthinker": _Window(4, dense_first=True, tokens=4096),
}


def read_layers(arch: str, key: Callable[..., Any]) -> Layers:
    """key(name, default): a value of the architecture's own metadata."""
    count = min(number(key("block_count")), _MAX_LAYERS)
    heads, embedding = number(key("attention.head_count")), number(key("embedding_length"))
    head_size = embedding // heads if heads else 0
    key_length = number(key("attention.key_length", head_size))
    value_length = number(key("attention.value_length", head_size))
    kv_heads = _per_layer(key("attention.head_count_kv", heads), count)
    states = _recurrent_layers(arch, kv_heads, key)
    window, windowed = _windows(arch, count, key)
    latent = bool(number(key("attention.key_length_mla")))
    return Layers(
        head_count_kv=_without_keys(arch, kv_heads, states, key),
        windowed=windowed,
        window=window,
        key_length=key_length,
        value_length=0 if latent else value_length,
        window_key_length=number(key("attention.key_length_swa", key_length)),
        window_value_length=number(
            key("attention.value_length_swa", 0 if latent else value_length)
        ),
        recurrent=any(states),
        state_bytes=sum(states) * _state_bytes(embedding, heads, key),
    )


def _per_layer(value: Any, count: int) -> list[int]:
    if isinstance(value, list):
        return [number(v) for v in value[:count]] + [0] * (count - len(value))
    return [number(value)] * count


def _without_keys(
    arch: str, kv_heads: list[int], states: list[bool], key: Callable[..., Any]
) -> tuple[int, ...]:
    """KV heads per layer, 0 where the layer has a state, another layer's keys, or is not run (the
    layers that predict further tokens)."""
    count = len(kv_heads)
    own = count - number(key("nextn_predict_layers")) or count
    if arch == "gemma3n":
        own = _GEMMA3N_OWN
    elif arch == "gemma4":
        own = count - number(key("attention.shared_kv_layers"))
    both = arch == "falcon-h1"
    return tuple(
        heads if layer < own and (both or not state) else 0
        for layer, (heads, state) in enumerate(zip(kv_heads, states, strict=True))
    )


def _recurrent_layers(arch: str, kv_heads: list[int], key: Callable[..., Any]) -> list[bool]:
    count = len(kv_heads)
    if arch in _RECURRENT or arch == "falcon-h1":
        return [True] * count
    if arch in _INTERVAL:
        listed = key("attention.recurrent_layers", None)
        if isinstance(listed, list):
            return [bool(v) for v in listed[:count]] + [False] * (count - len(listed))
        interval = number(key("full_attention_interval", 4)) or 4
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if arch in _HYBRID:
        # Layers of nemotron_h that are neither have a feed-forward length.
        forward = key("feed_forward_length")
        lengths = _per_layer(forward if isinstance(forward, list) else 0, count)
        return [not h and not f for h, f in zip(kv_heads, lengths, strict=True)]
    return [False] * count


def _windows(arch: str, count: int, key: Callable[..., Any]) -> tuple[int, tuple[bool, ...]]:
    """(tokens of the window, whether each layer sees only that)."""
    known = _WINDOWS.get(arch, _Window(1))
    window = number(key("attention.sliding_window", known.tokens))
    pattern = key("attention.sliding_window_pattern", None)
    if not window or (arch == "exaone4" and count != 64):  # its smaller ones have no window
        return 0, (False,) * count
    if isinstance(pattern, list):
        return window, tuple(bool(v) for v in _per_layer(pattern, count))
    every = number(pattern) if isinstance(pattern, int) else known.every
    dense = 0 if known.dense_first else every - 1
    windowed = tuple(not every or layer % every != dense for layer in range(count))
    return (window if any(windowed) else 0), windowed


def _state_bytes(embedding: int, heads: int, key: Callable[..., Any]) -> int:
    """Of one sequence in one recurrent layer: the convolution's and the state's 32-bit floats."""
    head = number(key("wkv.head_size"))
    if head:
        return 4 * embedding * (number(key("token_shift_count", 2)) + head)
    kernel = number(key("ssm.conv_kernel"))
    if cached := number(key("shortconv.l_cache")):
        return 4 * embedding * (cached - 1)
    if head := number(key("kda.head_dim")):
        return 4 * heads * head * (3 * (kernel - 1 if kernel else 3) + head)
    inner, state = number(key("ssm.inner_size")), number(key("ssm.state_size"))
    mixed = inner + 2 * number(key("ssm.group_count")) * state
    return 4 * (max(kernel - 1, 0) * mixed + state * inner)
