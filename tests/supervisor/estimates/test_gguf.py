"""Estimates beside what llama.cpp itself reported for the same model and sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.formats.ggufs import write
from uml.protocol.errors import BadRequest
from uml.protocol.models import ModelFacts
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.estimates.gguf import compute_bytes, kv_bytes
from uml.supervisor.formats import read_facts

MIB = 1 << 20
SMOLLM2 = ModelFacts(
    format="gguf",
    type="llm",
    arch="llama",
    context_length=8192,
    embedding_length=576,
    feed_forward_length=1536,
    vocab_size=49152,
    block_count=30,
    head_count=9,
    head_count_kv=(3,) * 30,
    key_length=64,
    value_length=64,
    swa_layers=(False,) * 30,
    weights_bytes=96576768,
    extra={"gated": True},
)
GEMMA3 = ModelFacts(
    format="gguf",
    type="llm",
    arch="gemma3",
    context_length=32768,
    embedding_length=640,
    feed_forward_length=2048,
    vocab_size=262144,
    block_count=18,
    head_count=4,
    head_count_kv=(1,) * 18,
    key_length=256,
    value_length=256,
    sliding_window=512,
    swa_layers=tuple(i % 6 < 5 for i in range(18)),
    weights_bytes=246587904,
    extra={"gated": True},
)


MINILM = ModelFacts(
    format="gguf",
    type="embedding",
    arch="bert",
    context_length=512,
    embedding_length=384,
    feed_forward_length=1536,
    vocab_size=30522,
    block_count=6,
    head_count=12,
    head_count_kv=(12,) * 6,
    key_length=32,
    value_length=32,
    swa_layers=(False,) * 6,
    weights_bytes=24645744,
    extra={"keeps_nothing": True},
)


# What llama.cpp 0c1e57098 logged with the worker's settings: "KV buffer size", and "compute buffer
# size" + "output buffer size". What makes vectors has rows of results for 32 texts then, and gets
# one for each token when a batch comes: measured, 48.4 MB more after batches of 388 tokens.
@pytest.mark.parametrize(
    ("facts", "options", "kv", "compute"),
    [
        (SMOLLM2, {"kv_cells": 512}, 11.25, 14.01 + 1.5),
        (SMOLLM2, {"kv_cells": 4096, "slots": 32}, 90.0, 17.51 + 6),
        (SMOLLM2, {"kv_cells": 8192}, 180.0, 21.51 + 1.5),
        (SMOLLM2, {"kv_cells": 4096, "n_ubatch": 128}, 90.0, 4.38 + 1.5),
        (SMOLLM2, {"kv_cells": 4096, "flash_attention": "off"}, 90.0, 86.38 + 1.5),
        (SMOLLM2, {"kv_cells": 131072}, 2880.0, 141.51 + 1.5),
        (GEMMA3, {"kv_cells": 4096}, 72.0, 25.77 + 8),
        (GEMMA3, {"kv_cells": 4096, "n_ubatch": 128}, 72.0, 8.33 + 8),
        (GEMMA3, {"kv_cells": 4096, "slots": 32}, 72.0, 33.33 + 32),
        (GEMMA3, {"kv_cells": 4096, "flash_attention": "off"}, 72.0, 57.76 + 8),
        (GEMMA3, {"kv_cells": 16384, "swa_full": False}, 115.5, 38.27 + 8),
        (MINILM, {}, 0.0, 5.82 + 512 * (30522 + 384) * 4 / MIB),
    ],
)
def test_estimate_equals_what_llama_cpp_reports(
    facts: ModelFacts, options: dict[str, Any], kv: float, compute: float
) -> None:
    sizes = {"slots": 32} if facts is MINILM else {"n_ctx": 512, "slots": 8}
    resolved = resolve_options(facts, sizes | options)
    assert kv_bytes(facts, resolved) == kv * MIB
    assert compute_bytes(facts, resolved) / MIB == pytest.approx(compute, rel=0.03)


def test_quantised_cache_is_smaller_by_its_block_size() -> None:
    options = resolve_options(SMOLLM2, {"kv_cells": 4096, "cache_type_k": "q8_0"})
    assert kv_bytes(SMOLLM2, options) == 90 * MIB / 2 + 90 * MIB / 2 * (34 / 32) / 2


def test_windowed_layers_may_have_heads_of_another_size() -> None:
    facts = dataclasses.replace(
        GEMMA3, extra={"window_key_length": 128, "window_value_length": 128, "gated": True}
    )
    options = resolve_options(facts, {"kv_cells": 4096})
    assert kv_bytes(facts, options) == 4096 * 2 * (15 * 256 + 3 * 512)


def test_recurrent_state_is_per_slot_and_not_per_token() -> None:
    facts = dataclasses.replace(SMOLLM2, head_count_kv=(0,) * 30, extra={"state_bytes": 1000})
    for n_ctx in (512, 4096):
        assert kv_bytes(facts, resolve_options(facts, {"n_ctx": n_ctx, "slots": 3})) == 3000


def test_embedding_model_with_a_vocabulary_to_predict_computes_all_of_it() -> None:
    # llama.cpp logged 401.05 for 2048 tokens and a pooling of 3.
    facts = dataclasses.replace(SMOLLM2, type="embedding")
    options = resolve_options(facts, {"n_ctx": 2048, "slots": 8})
    assert compute_bytes(facts, options) / MIB == pytest.approx(
        401.05 + 2048 * (49152 + 576) * 4 / MIB, rel=0.03
    )
    assert resolve_options(facts, {})["n_ctx"] == 1024, "which is why the default is short"


def test_resolved_options_are_complete_and_the_pool_holds_one_full_context() -> None:
    options = resolve_options(SMOLLM2, {})
    assert options["n_ctx"] == 4096 and options["kv_cells"] % 256 == 0
    assert resolve_options(SMOLLM2, {"kv_cells": 10, "n_ctx": 1000})["kv_cells"] == 1024
    assert resolve_options(SMOLLM2, {"n_ctx": 100_000})["n_ctx"] == 8192, "what it was trained for"
    assert resolve_options(SMOLLM2, {"gpu_layers": -1})["n_gpu_layers"] == -1
    for facts in (SMOLLM2, GEMMA3, MINILM):
        options = resolve_options(facts, {})
        assert resolve_options(facts, options) == options, "deciding twice changes nothing"


def test_worker_decides_no_size_by_itself() -> None:
    """Its own defaults are for a supervisor that says nothing; ours says all."""
    sizes = {"n_ctx", "slots", "kv_cells", "n_batch", "n_ubatch", "prefix_cache_bytes", "swa_full"}
    sizes |= {"flash_attention"}
    for facts in (SMOLLM2, MINILM):
        assert sizes <= set(resolve_options(facts, {}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_ctx", 0), ("n_ctx", "4096"), ("slots", True), ("n_batch", 1.5), ("cache_type_k", "q9")],
)
def test_option_that_makes_no_sense_is_named(key: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=key):
        resolve_options(SMOLLM2, {key: value})


def test_estimate_names_its_sum(tmp_path: Path) -> None:
    facts = read_facts(str(write(tmp_path / "m.gguf")))
    guess = estimate(facts, resolve_options(facts, {}), 64 * MIB)
    assert guess.total_bytes == guess.model_bytes + 64 * MIB + 140 * facts.vocab_size
    assert guess.parked_bytes == 256 * MIB, "is promised, and not what the model takes"
    assert "KV cache (16384 cells x 0.4 KB)" in guess.arithmetic
    assert "268 MB parked" in guess.arithmetic and "67 MB process" in guess.arithmetic
