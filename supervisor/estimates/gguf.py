"""GGUF models under llama.cpp: sizes, keys and values to the byte, compute buffers by fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates.projector import encoding_bytes
from uml.supervisor.estimates.sums import spell, whole

_MAX_DEFAULT_CONTEXT = 4096
#: An embedding model with a vocabulary's width of output computes that for every token at once.
_MAX_DEFAULT_WIDE = 1024
_DEFAULT_SLOTS = 32
_EMBEDDING_SLOTS = 32
_BATCH = 512
_PAD = 256
#: RAM per token of the vocabulary in llama.cpp's tables. Measured: 105 bytes with gemma's, and 40
#: of a token without a name where it is read apart.
_TOKEN_BYTES = 140
#: RAM for the KV of conversations that are not in the pool.
_PREFIX_CACHE_BYTES = 256 << 20
#: Bytes per element of the K/V cache types. Source: ggml.c `type_traits`.
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    """n_ctx: tokens one request may use, never more than trained. slots: requests at once.
    kv_cells: cells of the pool that all of them share, half of what eight full contexts would take:
    few requests use all of theirs, and when the pool runs out the youngest waits. n_batch,
    n_ubatch: tokens per step. prefix_cache_bytes: RAM for conversations outside the pool.
    """
    given = dict(given)
    if "gpu_layers" in given:  # the configuration's word for it
        given["n_gpu_layers"] = given.pop("gpu_layers")
    trained = facts.context_length or 1 << 24
    sizes = (_vector_sizes if _makes_vectors(facts) else _text_sizes)(facts, given, trained)
    resolved = {"swa_full": True, "flash_attention": "auto", **given, **sizes}
    for key in ("cache_type_k", "cache_type_v"):
        if resolved.get(key) is not None and resolved[key] not in CACHE_TYPES:
            raise BadRequest(f"{key} is {resolved[key]!r}; known are {', '.join(CACHE_TYPES)}")
    return resolved


def _text_sizes(facts: ModelFacts, given: Mapping[str, Any], trained: int) -> dict[str, int]:
    n_ctx = min(whole(given, "n_ctx", min(trained, _MAX_DEFAULT_CONTEXT)), trained)
    slots = whole(given, "slots", _DEFAULT_SLOTS)
    cells = whole(given, "kv_cells", min(slots, 8) * n_ctx // 2)
    batch = max(whole(given, "n_batch", _BATCH), slots)
    return {
        "n_ctx": n_ctx,
        "slots": slots,
        "kv_cells": pad(max(cells, n_ctx)),
        "n_batch": batch,
        "n_ubatch": min(whole(given, "n_ubatch", batch), batch),
        "prefix_cache_bytes": whole(given, "prefix_cache_bytes", _PREFIX_CACHE_BYTES, 0),
    }


def _vector_sizes(facts: ModelFacts, given: Mapping[str, Any], trained: int) -> dict[str, int]:
    """A text is looked at as a whole, so it has to fit into one batch."""
    default = _MAX_DEFAULT_CONTEXT if _keeps_nothing(facts) else _MAX_DEFAULT_WIDE
    n_ctx = min(whole(given, "n_ctx", min(trained, default)), trained)
    batch = max(whole(given, "n_batch", _BATCH), pad(n_ctx))
    return {
        "n_ctx": n_ctx,
        "slots": whole(given, "slots", _EMBEDDING_SLOTS),
        "kv_cells": pad(max(whole(given, "kv_cells", batch), batch)),
        "n_batch": batch,
        "n_ubatch": batch,
        "prefix_cache_bytes": 0,
    }


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    kv, compute = kv_bytes(facts, options), compute_bytes(facts, options)
    parked, cells = int(options["prefix_cache_bytes"]), int(options["kv_cells"])
    process = process_bytes + _TOKEN_BYTES * facts.vocab_size  # in RAM wherever the model is
    return MemoryEstimate(
        weights_bytes=facts.weights_bytes,
        kv_bytes=kv,
        compute_bytes=compute,
        process_bytes=process,
        parked_bytes=parked,
        arithmetic=spell(
            (facts.weights_bytes, "weights"),
            (kv, f"KV cache ({cells} cells x {kv / cells / 1000:.1f} KB)"),
            (compute, "compute"),
            (process, "process"),
            (parked, "parked conversations"),
        ),
        projector_bytes=int(facts.extra.get("projector_bytes", 0)),
        encoding_bytes=encoding_bytes(facts, options),
    )


def kv_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Keys, values and recurrent states, to the byte as llama.cpp logs them.

    Source: llama.cpp's llama-kv-cache.cpp, llama-memory-recurrent.cpp (a state per sequence).
    """
    if _keeps_nothing(facts):
        return 0
    cells, window_cells = int(options["kv_cells"]), _window_cells(facts, options)
    # Not given they are f16 or bf16, as the worker sees fit.
    per_k = CACHE_TYPES[str(options.get("cache_type_k") or "f16")]
    per_v = CACHE_TYPES[str(options.get("cache_type_v") or "f16")]
    row = facts.key_length * per_k + facts.value_length * per_v
    window_row = (
        facts.extra.get("window_key_length", facts.key_length) * per_k
        + facts.extra.get("window_value_length", facts.value_length) * per_v
    )
    total = 0.0
    for layer, heads in enumerate(facts.head_count_kv):
        windowed = layer < len(facts.swa_layers) and facts.swa_layers[layer]
        total += heads * (window_row * window_cells if windowed else row * cells)
    return int(total) + int(facts.extra.get("state_bytes", 0)) * int(options["slots"])


def _window_cells(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Cells of layers that see only a window. Source: llama.cpp's llama-kv-cache-iswa.cpp."""
    cells = int(options["kv_cells"])
    if options["swa_full"] or not facts.sliding_window:
        return cells
    wanted = facts.sliding_window * int(options["slots"]) + int(options["n_ubatch"])
    return pad(min(cells, wanted))


def compute_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Scratch of one step and the rows of results, of which a model that makes vectors has one for
    each token (llama.cpp says so only of the first few: they are made when a batch has them).

    Scratch is the larger of two phases: the output's, where each token has its embedding and each
    result a row of the vocabulary; and a layer's, fitted to what llama.cpp (CPU) reports for llama,
    gemma3 and bert models over n_ubatch 128..512, 1..32 slots and 512..131,072 cells.
    """
    tokens, slots, width = int(options["n_ubatch"]), int(options["slots"]), facts.embedding_length
    vectors = _makes_vectors(facts)
    results = (0 if _keeps_nothing(facts) else tokens) if vectors else min(slots, tokens)
    output = results * (facts.vocab_size + 2 * width) + (tokens - results) * width
    layer = tokens * _layer_floats(facts, options) if facts.block_count else 0
    rows = (tokens if vectors else slots) * (facts.vocab_size + (width if vectors else 0))
    return 4 * (max(output, layer) + rows)


def _layer_floats(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """32-bit floats per token in a layer: activations, and masks as wide as the cache. Without
    flash attention the scores of all heads are that wide, too."""
    width, heads = facts.embedding_length, facts.head_count
    queries = heads * facts.key_length
    forward = facts.extra.get("active_feed_forward", facts.feed_forward_length)
    forward *= 3 if facts.extra.get("gated") else 1
    if _keeps_nothing(facts):
        seen, queries = int(options["n_ubatch"]), 0
    else:
        seen = int(options["kv_cells"])
        seen += _window_cells(facts, options) if facts.sliding_window else 0
    if options["flash_attention"] != "off":
        return int(forward + 3 * width + queries + seen // 2)
    kv = max(facts.head_count_kv, default=0) * (facts.key_length + facts.value_length)
    scores = heads * int(options["kv_cells"]) + 3 * width + 2 * queries + kv
    return int(seen + max(scores, forward + 3 * width + queries))


def _makes_vectors(facts: ModelFacts) -> bool:
    return facts.type in ("embedding", "rerank")


def _keeps_nothing(facts: ModelFacts) -> bool:
    return bool(facts.extra.get("keeps_nothing"))


def pad(cells: int) -> int:
    """llama.cpp rounds the number of cells up to this."""
    return -(-int(cells) // _PAD) * _PAD
