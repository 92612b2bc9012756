"""How much memory a model will take, from its header alone: pure.

`resolve_options` is the one place where sizes are decided (context, slots, pool cells, batch): the
worker is told every number and guesses none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import MemoryEstimate, ModelFacts

_MAX_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 16
_PAD = 256
#: RAM for the KV of conversations that are not being computed: they go on without a new prefill.
_PREFIX_CACHE = 128 << 20
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


def resolve_options(facts: ModelFacts, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with every size filled in.

    n_ctx: tokens one request may use. slots: requests at once. kv_cells: cells of the pool that all
    of them share, half of what eight full contexts would take: few requests use all of theirs, and
    when the pool runs out the youngest waits. n_batch, n_ubatch: tokens per step.
    """
    given = {
        k: v for k, v in {**facts.extra.get("options", {}), **options}.items() if v is not None
    }
    if facts.format == "fake":
        return {"n_ctx": facts.context_length, "slots": 4, **given}
    trained = facts.context_length or _MAX_DEFAULT_CONTEXT
    n_ctx = int(given.get("n_ctx") or min(trained, _MAX_DEFAULT_CONTEXT))
    if facts.type in ("embedding", "rerank"):
        n_ctx = min(n_ctx, trained)
        slots = int(given.get("slots") or 32)
        batch = _pad(max(n_ctx, 512))
        sizes = {"kv_cells": batch, "n_batch": batch, "n_ubatch": batch}
    else:
        slots = int(given.get("slots") or _DEFAULT_SLOTS)
        sizes = {
            "kv_cells": _pad(max(n_ctx, min(slots, 8) * n_ctx // 2)),
            "n_batch": 512,
            "n_ubatch": 512,
        }
    resolved = {
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "swa_full": True,
        "prefix_cache_bytes": 0 if facts.type in ("embedding", "rerank") else _PREFIX_CACHE,
        **sizes,
        **given,
        "n_ctx": n_ctx,
        "slots": slots,
    }
    resolved["kv_cells"] = max(_pad(resolved["kv_cells"]), _pad(n_ctx))
    resolved["n_ubatch"] = min(resolved["n_ubatch"], resolved["n_batch"])
    return resolved


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    """Bytes by what needs them. options: resolved. process_bytes: of the bare worker."""
    if facts.format == "fake":
        ram = int(options.get("ram_bytes", 0))
        weights = facts.weights_bytes if options.get("device") else facts.weights_bytes + ram
        process = process_bytes + (ram if options.get("device") else 0)
        return MemoryEstimate(weights, 0, 0, process, arithmetic=f"{weights} bytes declared")
    kv, compute = kv_bytes(facts, options), compute_bytes(facts, options)
    parked = int(options.get("prefix_cache_bytes", 0))
    arithmetic = (
        f"{_mb(facts.weights_bytes)} weights + {_mb(kv)} KV cache ({options['kv_cells']} cells) + "
        f"{_mb(compute)} compute + {_mb(parked)} prefix cache + {_mb(process_bytes)} process"
    )
    return MemoryEstimate(
        weights_bytes=facts.weights_bytes,
        kv_bytes=kv,
        compute_bytes=compute + parked,
        process_bytes=process_bytes,
        arithmetic=arithmetic,
    )


def kv_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """The K/V cache, to the byte as llama.cpp logs it.

    Source: llama.cpp's llama-kv-cache.cpp and llama-kv-cache-iswa.cpp (window layers hold
    min(cells, window x sequences + ubatch) cells unless swa_full).
    """
    if facts.extra.get("has_encoder") and facts.type in ("embedding", "rerank"):
        return 0
    cells = int(options["kv_cells"])
    per_k = CACHE_TYPES[str(options.get("cache_type_k", "f16"))]
    per_v = CACHE_TYPES[str(options.get("cache_type_v", "f16"))]
    window_cells = cells
    if not options.get("swa_full", True) and facts.sliding_window:
        wanted = facts.sliding_window * int(options["slots"]) + int(options["n_ubatch"])
        window_cells = _pad(min(cells, wanted))
    total = 0.0
    for layer, heads in enumerate(facts.head_count_kv):
        windowed = layer < len(facts.swa_layers) and facts.swa_layers[layer]
        row = heads * (facts.key_length * per_k + facts.value_length * per_v)
        total += row * (window_cells if windowed else cells)
    return int(total)


def compute_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Scratch of one step and the output rows.

    Fitted to what llama.cpp (CPU, flash attention) reports for llama, gemma3 and bert models over
    n_ubatch 128..512: the larger of the output phase, (vocab + 2 embedding) floats per token, and a
    layer's, (feed-forward + 3 embedding).
    """
    ubatch, vocab = int(options["n_ubatch"]), facts.vocab_size
    encoder = facts.type in ("embedding", "rerank")
    output = 0 if encoder else vocab + 2 * facts.embedding_length
    layer = facts.feed_forward_length + 3 * facts.embedding_length
    mask = ubatch * ubatch * 4 if encoder else 0
    rows = int(options["slots"]) * vocab * 4
    return ubatch * 4 * max(output, layer) + mask + rows


def _pad(cells: int) -> int:
    """llama.cpp rounds the number of cells up to this."""
    return -(-int(cells) // _PAD) * _PAD


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
