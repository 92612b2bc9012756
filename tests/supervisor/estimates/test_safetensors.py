"""Estimates of Hugging Face models, beside sizes that are published or worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.formats.hf import (
    DEEPSEEK_V3,
    GEMMA2_9B,
    LLAMA3_8B,
    MIXTRAL,
    QWEN25_7B,
    Tensors,
    write,
)
from uml.protocol.errors import BadRequest
from uml.protocol.models import ModelFacts
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.estimates.safetensors import compute_bytes, kv_bytes, weights_bytes
from uml.supervisor.formats import read_facts

ONE: Tensors = {"model.embed_tokens.weight": ("BF16", (10, 4))}


def facts_of(folder: Path, config: dict[str, Any], tensors: Tensors = ONE) -> ModelFacts:
    return read_facts(str(write(folder, config, tensors)))


# Bytes of one token's keys and values in 16 bits: 2 x layers x KV heads x length x 2; DeepSeek's
# paper says 70.272 KB.
@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (LLAMA3_8B, 131_072),
        (QWEN25_7B, 57_344),
        (MIXTRAL, 131_072),
        (DEEPSEEK_V3, 70_272),
    ],
)
def test_keys_and_values_per_token_are_as_published(
    tmp_path: Path, config: dict[str, Any], per_token: int
) -> None:
    facts = facts_of(tmp_path, config)
    options = resolve_options(facts, {"n_ctx": 4096, "kv_cells": 8192})
    assert kv_bytes(facts, options) == 8192 * per_token
    halved = resolve_options(facts, {"kv_cells": 8192, "kv_cache_dtype": "fp8"})
    assert kv_bytes(facts, halved) == 8192 * per_token // 2


def test_layers_with_a_window_keep_no_more_than_it(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, GEMMA2_9B)
    options = resolve_options(facts, {"n_ctx": 8192, "kv_cells": 65536, "slots": 4})
    row = 8 * 2 * 256 * 2
    assert kv_bytes(facts, options) == 21 * row * 65536 + 21 * row * (4 * 4096 + 2048)
    short = resolve_options(facts, {"n_ctx": 4096, "kv_cells": 4096, "slots": 4})
    assert kv_bytes(facts, short) == 42 * row * 4096


def test_states_are_per_request_and_not_per_token(tmp_path: Path) -> None:
    config = LLAMA3_8B | {"layer_types": ["conv"] * 31 + ["full_attention"], "conv_L_cache": 3}
    facts = facts_of(tmp_path, config)
    options = resolve_options(facts, {"kv_cells": 4096, "slots": 5})
    assert kv_bytes(facts, options) == 4096 * 2 * 8 * 128 * 2 + 5 * 31 * 4 * 4096 * 2


def test_weights_are_counted_in_the_type_they_are_computed_in(tmp_path: Path) -> None:
    tensors: Tensors = {"a.weight": ("F32", (100, 10)), "a.position_ids": ("I64", (1, 10))}
    facts = facts_of(tmp_path, LLAMA3_8B | {"torch_dtype": "float32"}, tensors)
    for said, expected in (("auto", 2080), ("float32", 4080), ("bfloat16", 2080)):
        assert weights_bytes(facts, resolve_options(facts, {"dtype": said})) == expected
    quantised = dataclasses.replace(facts, extra=facts.extra | {"quantised": True})
    assert weights_bytes(quantised, resolve_options(quantised, {})) == facts.weights_bytes


def test_scratch_grows_with_the_step_and_the_requests(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, LLAMA3_8B)
    small, large = (resolve_options(facts, {"n_batch": n, "slots": 8}) for n in (512, 2048))
    assert compute_bytes(facts, large) - compute_bytes(facts, small) == 1536 * 2 * (
        3 * 4096 + 32 * 128 + 8 * 256 + 3 * 14336
    )
    more = resolve_options(facts, {"n_batch": 512, "slots": 16})
    assert compute_bytes(facts, more) - compute_bytes(facts, small) == 8 * 128256 * 6


def test_encoder_keeps_nothing_and_says_its_sum(tmp_path: Path) -> None:
    bert = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    }
    facts = facts_of(tmp_path, bert, {"a": ("F32", (1_000_000, 10))})
    options = resolve_options(facts, {})
    assert (options["n_ctx"], options["kv_cells"]) == (512, 0)
    guess = estimate(facts, options, 5_000_000)
    assert guess.kv_bytes == 0
    assert guess.arithmetic.startswith("20 MB weights + ")
    assert guess.total_bytes == guess.weights_bytes + guess.compute_bytes + 5_000_000


def test_sizes_are_all_decided_and_bounded_by_what_was_trained(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, LLAMA3_8B)
    options = resolve_options(facts, {"n_ctx": 100_000, "kv_cells": 17})
    assert (options["n_ctx"], options["kv_cells"]) == (8192, 8192)
    assert {"slots", "n_batch", "dtype", "kv_cache_dtype"} <= set(options)
    assert resolve_options(facts, options) == options


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_ctx", 0), ("slots", True), ("dtype", "int3"), ("kv_cache_dtype", "q8_0"), ("dtype", 16)],
)
def test_option_that_makes_no_sense_is_named(tmp_path: Path, key: str, value: Any) -> None:
    facts = facts_of(tmp_path, LLAMA3_8B)
    with pytest.raises(BadRequest, match=key):
        resolve_options(facts, {key: value})
