"""Which layers keep keys and values, in the cases llama.cpp tells apart."""

from __future__ import annotations

from typing import Any

import pytest

from uml.supervisor.formats.gguf_layers import read_layers

BASE = {
    "block_count": 8,
    "embedding_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def layers(arch: str, **meta: Any) -> Any:
    known = BASE | {k.replace("__", "."): v for k, v in meta.items()}
    return read_layers(arch, lambda name, default=0: known.get(name, default))


def test_plain_model_keeps_keys_in_every_layer() -> None:
    found = layers("llama")
    assert found.head_count_kv == (2,) * 8 and not found.recurrent
    assert (found.key_length, found.value_length, found.state_bytes) == (16, 16, 0)


def test_latent_attention_keeps_no_values() -> None:
    found = layers(
        "deepseek2",
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__head_count_kv=1,
    )
    assert (found.key_length, found.value_length) == (576, 0)


def test_layers_that_share_or_predict_keep_nothing() -> None:
    assert layers("gemma4", attention__shared_kv_layers=3).head_count_kv == (2,) * 5 + (0,) * 3
    assert layers("glm4moe", nextn_predict_layers=1).head_count_kv == (2,) * 7 + (0,)
    assert layers("gemma3n", block_count=30).head_count_kv == (2,) * 20 + (0,) * 10


@pytest.mark.parametrize(
    ("arch", "meta", "kv_heads", "state_bytes"),
    [
        # conv 3 x (128 + 2 x 1 x 16) + state 16 x 128, in 8 layers of floats
        (
            "mamba2",
            {"conv_kernel": 4, "inner_size": 128, "state_size": 16, "group_count": 1},
            (0,) * 8,
            8 * 4 * (3 * 160 + 2048),
        ),
        ("qwen3next", {"conv_kernel": 4, "inner_size": 8}, (0, 0, 0, 2) * 2, 6 * 4 * 24),
        ("falcon-h1", {"conv_kernel": 4, "inner_size": 8}, (2,) * 8, 8 * 4 * 24),
    ],
)
def test_recurrent_layers_keep_a_state(
    arch: str, meta: dict[str, int], kv_heads: tuple[int, ...], state_bytes: int
) -> None:
    found = layers(arch, **{f"ssm__{k}": v for k, v in meta.items()})
    assert found.recurrent
    assert (found.head_count_kv, found.state_bytes) == (kv_heads, state_bytes)


def test_hybrid_layers_are_told_by_their_heads() -> None:
    meta = {"attention__head_count_kv": [0, 0, 2, 0, 0, 2, 0, 2], "shortconv__l_cache": 3}
    found = layers("lfm2", **meta)
    assert found.head_count_kv == (0, 0, 2, 0, 0, 2, 0, 2)
    assert found.state_bytes == 5 * 4 * 64 * 2
    # A layer that is only a feed-forward has neither.
    found = layers("nemotron_h", **meta, feed_forward_length=[9, 0, 0, 0, 0, 0, 0, 0])
    assert found.state_bytes == 4 * 4 * 64 * 2


def test_rwkv_state_is_by_its_heads() -> None:
    assert layers("rwkv7", wkv__head_size=16).state_bytes == 8 * 4 * 64 * (2 + 16)


def test_windows_that_llama_cpp_does_not_use_do_not_count() -> None:
    for arch in ("llama", "phi3", "exaone4"):
        found = layers(arch, attention__sliding_window=512)
        assert found.window == 0 and not any(found.windowed)


def test_windows_have_defaults_and_heads_of_their_own() -> None:
    assert layers("gemma2").window == 4096
    found = layers("gemma4", attention__sliding_window=512, attention__key_length_swa=32)
    assert (found.key_length, found.window_key_length) == (16, 32)
    assert all(layers("deepseek4", attention__sliding_window=128).windowed)
