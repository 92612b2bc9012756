"""Hugging Face folders: what headers and config.json say, and what is wrong with broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supervisor.formats.hf import (
    DEEPSEEK_V3,
    GEMMA2_9B,
    GEMMA3_4B,
    LLAMA3_8B,
    MIXTRAL,
    QWEN25_7B,
    TINY,
    Tensors,
    header,
    llama,
    write,
    write_file,
)
from uml.protocol.errors import InvalidModel
from uml.supervisor.formats import read_facts
from uml.supervisor.formats.hf_layers import language, read_layers
from uml.supervisor.formats.safetensors_header import read_header

ONE: Tensors = {"model.embed_tokens.weight": ("BF16", (10, 4))}


# `total_size` of their published indices, and the parameters that are told of them.
@pytest.mark.parametrize(
    ("config", "shape", "total", "billions"),
    [
        (LLAMA3_8B, {}, 16_060_522_496, 8.03),
        (QWEN25_7B, {"bias": True}, 15_231_233_024, 7.62),
        (MIXTRAL, {}, 93_405_585_408, 46.7),
        (GEMMA2_9B, {"norms": 4}, 18_483_411_968, 9.24),
    ],
)
def test_weights_of_known_models_come_to_their_published_sizes(
    tmp_path: Path, config: dict[str, Any], shape: Any, total: int, billions: float
) -> None:
    facts = read_facts(str(write(tmp_path, config, llama(config, **shape), parts=4)))
    assert facts.weights_bytes == total
    assert facts.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert (facts.format, facts.type, facts.quantization) == ("safetensors", "llm", "BF16")
    assert facts.block_count == config["num_hidden_layers"]
    assert facts.tasks == ("complete",), "nothing here says how to chat"


# Per token and layer: KV heads, length of keys, of values; and layers that see a window.
@pytest.mark.parametrize(
    ("config", "heads", "key", "value", "window", "windowed"),
    [
        (LLAMA3_8B, 8, 128, 128, 0, 0),
        (QWEN25_7B, 4, 128, 128, 0, 0),
        (QWEN25_7B | {"use_sliding_window": True, "max_window_layers": 20}, 4, 128, 128, 131072, 8),
        (MIXTRAL, 8, 128, 128, 0, 0),
        (MIXTRAL | {"sliding_window": 4096}, 8, 128, 128, 4096, 32),
        (GEMMA2_9B, 8, 256, 256, 4096, 21),
        (GEMMA3_4B, 4, 256, 256, 1024, 29),
        (DEEPSEEK_V3, 1, 576, 0, 0, 0),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 12, 64, 64, 0, 0),  # GPT-2
        (
            {"model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71,
             "hidden_size": 4544, "multi_query": True}, 1, 64, 64, 0, 0,
        ),
    ],
)  # fmt: skip
def test_layers_are_read_as_the_libraries_read_them(
    config: dict[str, Any], heads: int, key: int, value: int, window: int, windowed: int
) -> None:
    layers = read_layers(language(config))
    assert set(layers.head_count_kv) == {heads}
    assert (layers.key_length, layers.value_length) == (key, value)
    assert (layers.window, sum(layers.windowed)) == (window, windowed)
    assert not layers.recurrent


def test_every_sixth_layer_of_gemma3_sees_everything() -> None:
    windowed = read_layers(language(GEMMA3_4B)).windowed
    assert [i for i, w in enumerate(windowed) if not w] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize(
    ("config", "with_keys", "state"),
    [
        (  # Qwen3-Next 80B
            {"num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 16,
             "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4,
             "linear_num_value_heads": 32, "linear_num_key_heads": 16,
             "linear_key_head_dim": 128, "linear_value_head_dim": 128,
             "linear_conv_kernel_dim": 4},
            12, 36 * 4 * (3 * 8192 + 32 * 128 * 128),
        ),
        (  # Jamba
            {"model_type": "jamba", "num_hidden_layers": 32, "hidden_size": 4096,
             "num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_period": 8,
             "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2},
            4, 28 * 4 * (3 * 8192 + 8192 * 16),
        ),
        (  # Nemotron-H, of which a part of the layers are neither
            {"num_hidden_layers": 5, "hidden_size": 4096, "num_attention_heads": 32,
             "num_key_value_heads": 8, "hybrid_override_pattern": "M-M*-", "conv_kernel": 4,
             "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8},
            1, 2 * 4 * (3 * (8192 + 2 * 8 * 128) + 8192 * 128),
        ),
        (  # LFM2
            {"num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16,
             "num_key_value_heads": 8, "conv_L_cache": 3,
             "layer_types": ["conv", "conv", "full_attention", "conv"]},
            1, 3 * 4 * 1024 * 2,
        ),
        (  # Gemma 3n: the last layers use the keys of earlier ones
            {"num_hidden_layers": 30, "hidden_size": 2048, "num_attention_heads": 8,
             "num_key_value_heads": 2, "head_dim": 256, "num_kv_shared_layers": 10}, 20, 0,
        ),
    ],
)  # fmt: skip
def test_layers_without_keys_keep_a_state_or_nothing(
    config: dict[str, Any], with_keys: int, state: int
) -> None:
    layers = read_layers(language(config))
    assert sum(1 for n in layers.head_count_kv if n) == with_keys
    assert layers.state_bytes == state


@pytest.mark.parametrize(
    ("config", "kind", "tasks"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "embedding", ("embed",)),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "rerank", ("rerank",)),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "stt", ("transcribe",)),
        ({"architectures": ["ViTModel"], "image_size": 224}, "vision", ()),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}, **TINY,
          "model_type": "gemma3"}, "llm", ("complete",)),
        (GEMMA3_4B, "multimodal", ("complete",)),
    ],
)  # fmt: skip
def test_kind_of_model_is_told_by_its_architecture(
    tmp_path: Path, config: dict[str, Any], kind: str, tasks: tuple[str, ...]
) -> None:
    if kind == "llm":
        config = {k: v for k, v in config.items() if k != "vision_config"}
    facts = read_facts(str(write(tmp_path, config, ONE)))
    assert (facts.type, facts.tasks) == (kind, tasks)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_chat_template_is_found_where_it_is_kept(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, TINY, llama(TINY))
    text = "{{ messages }}"
    told = json.dumps({"chat_template": [{"name": "default", "template": text}]})
    (tmp_path / name).write_text(told if name.endswith(".json") else text)
    facts = read_facts(str(path))
    assert facts.chat_template == text
    assert facts.tasks == ("chat", "complete")


@pytest.mark.parametrize(
    ("said", "tensors", "label", "parameters"),
    [
        ({"quant_method": "awq", "bits": 4}, {
            "a.qweight": ("I32", (64, 16)), "a.qzeros": ("I32", (1, 16)),
            "a.scales": ("F16", (1, 128)), "lm_head.weight": ("F16", (10, 64)),
        }, "AWQ-4bit", 64 * 128 + 640),
        ({"quant_method": "fp8"}, {
            "a.weight": ("F8_E4M3", (64, 64)), "a.weight_scale_inv": ("F32", (1, 1)),
        }, "FP8", 4097),
        ({"quant_method": "mxfp4"}, {
            "a_blocks": ("U8", (64, 32)), "a_scales": ("U8", (64, 2)),
        }, "MXFP4", 64 * 64),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {
            "a.weight": ("U8", (2048, 1)), "a.weight.absmax": ("F32", (64,)),
        }, "BNB-4bit", 4096),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, {
            "a.weight_packed": ("I32", (64, 8)), "a.weight_scale": ("BF16", (64, 1)),
        }, "CT-4bit", 64 * 64),
    ],
)  # fmt: skip
def test_quantised_weights_are_counted_singly(
    tmp_path: Path, said: dict[str, Any], tensors: Tensors, label: str, parameters: int
) -> None:
    path = write(tmp_path, TINY | {"quantization_config": said}, tensors)
    facts = read_facts(str(path))
    assert (facts.quantization, facts.parameters) == (label, parameters)
    raw, size = header(tensors)
    assert facts.weights_bytes == size == path.stat().st_size - len(raw)


def test_only_headers_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA3_8B, llama(LLAMA3_8B))
    assert path.stat().st_size > 16e9, "a hole: reading it would take long and show"
    assert read_facts(str(path)).weights_bytes == 16_060_522_496


def _broken(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return go


def _says(**changes: Any) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        raw = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})
        data = len(raw).to_bytes(8, "little") + raw.encode() + bytes(8)
        (folder / "model.safetensors").write_bytes(data)

    return go


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_broken(lambda b: b[:-1]), "truncated: its tensors need"),
        (_broken(lambda b: b + b"x"), "bytes behind the last tensor"),
        (_broken(lambda b: b[:50]), "truncated: the file ends inside its header"),
        (_broken(lambda b: b""), "truncated"),
        (_broken(lambda b: b"\xff" * 8 + b[8:]), "a header of"),
        (_broken(lambda b: b[:8] + b"!" + b[9:]), "no JSON"),
        (_broken(lambda b: (2).to_bytes(8, "little") + b"[]"), "no JSON object"),
        (_broken(lambda b: (2).to_bytes(8, "little") + b"{}"), "no tensors"),
        (_says(dtype="F128"), "of type 'F128'"),
        (_says(dtype=["F32"]), "is of type"),
        (_says(shape=[3]), "has 8 bytes"),
        (_says(shape=[-2]), "no shape"),
        (_says(shape=[True]), "no shape"),
        (_says(data_offsets=[8, 16]), "lies at"),
        (_says(data_offsets=[0]), "no place"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json is no JSON object"),
        (lambda d: (d / "config.json").write_text("{}"), "names no architecture"),
        (lambda d: (d / "config.json").write_text('{"architectures": ["XForCausalLM"]}'), "layers"),
        (lambda d: (d / "config.json").write_text('{"model_type": "x", "n_layer": 9999}'), "9999"),
        (lambda d: (d / "config.json").write_text("[" * 100_000), "not JSON"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing beside"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    path = write(tmp_path, TINY, llama(TINY))
    change(tmp_path)
    with pytest.raises(InvalidModel, match=reason):
        read_facts(str(path))


def test_missing_shard_and_missing_tensor_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, TINY, llama(TINY), parts=3)
    last = tmp_path / "model-00003-of-00003.safetensors"
    write_file(last, ONE | {})
    with pytest.raises(
        InvalidModel, match=r"tensors that .* names are in no file, 'lm_head.weight'"
    ):
        read_facts(str(path))
    last.unlink()
    with pytest.raises(InvalidModel, match="part 3 of 3 is missing: model-00003-of-00003"):
        read_facts(str(path))


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, 400), patch=st.binary(min_size=1, max_size=12), cut=st.integers(0, 400)
)  # fmt: skip
def test_damaged_header_is_an_error_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, at: int, patch: bytes, cut: int
) -> None:
    raw, size = header({"a": ("F32", (2, 3)), "b.scales": ("I8", (4,))})
    damaged = bytearray(raw + bytes(size))
    damaged[at : at + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged[: len(damaged) - cut if cut < len(damaged) else 0])
    try:
        tensors = read_header(str(path))
    except InvalidModel:
        return
    assert sum(t.size_bytes for t in tensors) <= path.stat().st_size


text = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
FURTHER = (
    *("layer_types", "full_attention_interval", "attn_layer_period", "attn_layer_offset"),
    *("linear_attn_config", "attn_layer_indices", "hybrid_override_pattern", "attn_config"),
    *("linear_num_value_heads", "sliding_window_pattern", "num_kv_shared_layers"),
    *("conv_L_cache", "dtype"),
)
KEYS = sorted({*GEMMA2_9B, *GEMMA3_4B, *DEEPSEEK_V3, *QWEN25_7B, *FURTHER})


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_odd_configuration_is_an_error_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "odd", TINY | changes, ONE)
    try:
        facts = read_facts(str(path))
    except InvalidModel:
        return
    assert len(facts.head_count_kv) == facts.block_count == len(facts.swa_layers)
    assert min(facts.head_count_kv, default=0) >= 0
