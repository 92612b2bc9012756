"""Estimates beside what llama.cpp itself reported for the same model and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import write
from uml.protocol.models import ModelFacts
from uml.supervisor.estimate import compute_bytes, estimate, kv_bytes, resolve_options
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
)


# What llama.cpp 0c1e57098 logged ("KV buffer size", "compute buffer size", "output buffer size").
@pytest.mark.parametrize(
    ("facts", "cells", "ubatch", "slots", "swa_full", "kv", "compute", "output"),
    [
        (SMOLLM2, 512, 512, 1, True, 11.25, 98.25, 0.19),
        (SMOLLM2, 4096, 512, 32, True, 90.0, 98.25, 6.0),
        (SMOLLM2, 8192, 512, 8, True, 180.0, 98.25, 1.5),
        (SMOLLM2, 4096, 128, 8, True, 90.0, 24.56, 1.5),
        (GEMMA3, 4096, 512, 8, True, 72.0, 514.5, 8.0),
        (GEMMA3, 16384, 512, 8, False, 115.5, 514.5, 8.0),
        (GEMMA3, 4096, 256, 8, True, 72.0, 257.25, 8.0),
    ],
)
def test_estimate_equals_what_llama_cpp_reports(
    facts: ModelFacts,
    cells: int,
    ubatch: int,
    slots: int,
    swa_full: bool,
    kv: float,
    compute: float,
    output: float,
) -> None:
    options = resolve_options(
        facts,
        {
            "n_ctx": 512,
            "kv_cells": cells,
            "n_ubatch": ubatch,
            "slots": slots,
            "swa_full": swa_full,
        },
    )
    assert kv_bytes(facts, options) == kv * MIB
    assert compute_bytes(facts, options) / MIB == pytest.approx(compute + output, rel=0.002)


def test_quantised_cache_is_smaller_by_its_block_size() -> None:
    options = resolve_options(SMOLLM2, {"kv_cells": 4096, "cache_type_k": "q8_0"})
    assert kv_bytes(SMOLLM2, options) == 90 * MIB / 2 + 90 * MIB / 2 * (34 / 32) / 2


def test_encoder_has_no_cache() -> None:
    bert = ModelFacts(
        format="gguf", type="embedding", arch="bert", extra={"has_encoder": True}, vocab_size=30522
    )
    assert kv_bytes(bert, resolve_options(bert, {})) == 0


def test_resolved_options_are_complete_and_the_pool_holds_one_full_context() -> None:
    options = resolve_options(SMOLLM2, {})
    assert options["n_ctx"] == 4096 and options["kv_cells"] % 256 == 0
    assert resolve_options(SMOLLM2, {"kv_cells": 10, "n_ctx": 1000})["kv_cells"] == 1024
    assert resolve_options(SMOLLM2, options) == options, "deciding twice changes nothing"


def test_estimate_names_its_sum(tmp_path: Path) -> None:
    facts = read_facts(str(write(tmp_path / "m.gguf")))
    guess = estimate(facts, resolve_options(facts, {}), 64 * MIB)
    assert guess.total_bytes == guess.model_bytes + 64 * MIB
    assert "KV cache" in guess.arithmetic and "process" in guess.arithmetic
