"""Hugging Face models under a library that keeps keys and values in pages, as vLLM does.

Weights by type and shape; keys and values by layer; scratch of the largest step. vLLM takes the
share of a device that it is told (`gpu_memory_utilization`) whatever the model needs, and what is
left of it for keys and values: left alone, it is told the share that this estimate comes to; where
the configuration says a share, that is what it takes (`sized.filling`).

Source: vLLM's kv_cache_interface.py (bytes of a page) and `_get_and_verify_dtype`; the scratch is
arithmetic and was measured nowhere, since no backend here runs such models yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates.sums import spell, whole

_MAX_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 32
#: Tokens of one step, all requests together: vLLM's `max_num_batched_tokens`.
_BATCH = 2048
#: vLLM's pages.
_PAGE = 16
#: vLLM's names and those of the file.
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_CACHE_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float32": 4, "float16": 2, "bfloat16": 2}


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    """n_ctx: tokens one request may use, never more than trained. slots: requests at once.
    kv_cells: tokens of the pool that all of them share. n_batch: tokens per step. dtype,
    kv_cache_dtype: as vLLM names them."""
    trained = facts.context_length or 1 << 24
    n_ctx = min(whole(given, "n_ctx", min(trained, _MAX_DEFAULT_CONTEXT)), trained)
    slots = whole(given, "slots", _DEFAULT_SLOTS)
    cells = 0
    if not facts.extra.get("keeps_nothing"):
        cells = _pad(max(whole(given, "kv_cells", min(slots, 8) * n_ctx // 2), n_ctx))
    resolved = {
        "dtype": "auto",
        "kv_cache_dtype": "auto",
        **given,
        "n_ctx": n_ctx,
        "slots": slots,
        "kv_cells": cells,
        "n_batch": max(whole(given, "n_batch", _BATCH), slots),
    }
    for key, known in (("dtype", _TYPES), ("kv_cache_dtype", _CACHE_BYTES)):
        if resolved[key] != "auto" and resolved[key] not in known:
            names = ", ".join(("auto", *known))
            raise BadRequest(f"{key} is {resolved[key]!r}; known are {names}")
    return resolved


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    weights, kv = weights_bytes(facts, options), kv_bytes(facts, options)
    compute, cells = compute_bytes(facts, options), int(options["kv_cells"])
    each = f" ({cells} cells x {kv / cells / 1000:.1f} KB)" if cells else ""
    return MemoryEstimate(
        weights,
        kv,
        compute,
        process_bytes,
        mapped=False,
        arithmetic=spell(
            (weights, "weights"),
            (kv, f"KV cache{each}"),
            (compute, "compute"),
            (process_bytes, "process"),
        ),
    )


def weights_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """As they are in memory: tensors of floats become `dtype`, those of a quantised model stay."""
    by_type = facts.extra.get("bytes_by_type") or {}
    if not by_type or facts.extra.get("quantised"):
        return facts.weights_bytes
    width = _BYTES[_dtype(facts, options)]
    return sum(
        count // _BYTES[kind] * width if kind in _BYTES else count
        for kind, count in by_type.items()
    )


def kv_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Keys, values and recurrent states."""
    if facts.extra.get("keeps_nothing"):
        return 0
    said = str(options["kv_cache_dtype"])
    width = _CACHE_BYTES.get(said) or _BYTES[_dtype(facts, options)]
    row = (facts.key_length + facts.value_length) * width
    cells = int(options["kv_cells"])
    seen = facts.sliding_window * int(options["slots"]) + int(options["n_batch"])
    in_window = _pad(min(cells, seen))
    total = 0
    for layer, heads in enumerate(facts.head_count_kv):
        windowed = layer < len(facts.swa_layers) and facts.swa_layers[layer]
        total += heads * row * (in_window if windowed else cells)
    return total + int(facts.extra.get("state_bytes", 0)) * int(options["slots"])


def compute_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Activations of one layer for all tokens of a step, and for each request a row of the
    vocabulary, as computed and as 32-bit floats to choose from."""
    width = _BYTES[_dtype(facts, options)]
    heads = max(facts.head_count_kv, default=0) * (facts.key_length + facts.value_length)
    forward = int(facts.extra.get("active_feed_forward", facts.feed_forward_length))
    per_token = 3 * facts.embedding_length + facts.head_count * facts.key_length + heads
    tokens = int(options["n_batch"]) * (per_token + 3 * forward) * width
    vectors = facts.type in ("embedding", "rerank")
    rows = 0 if vectors else int(options["slots"]) * facts.vocab_size * (width + 4)
    return tokens + rows


def _dtype(facts: ModelFacts, options: Mapping[str, Any]) -> str:
    """The type of weights and activations. vLLM's `auto` makes 16 bits of 32."""
    said = str(options.get("dtype", "auto"))
    own = str(facts.extra.get("dtype", "BF16"))
    return _TYPES.get(said) or ("F16" if own == "F32" else own)


def _pad(cells: int) -> int:
    return -(-int(cells) // _PAGE) * _PAGE
