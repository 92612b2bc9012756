"""A small BERT becomes the GGUF that llama.cpp expects, and its numbers are 32-bit arithmetic's."""

from __future__ import annotations

import json
import math
import os
import struct
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol.errors import InvalidModel
from uml.supervisor.formats import read_facts
from uml.supervisor.pull.bert import convert, q8_0
from uml.supervisor.pull.place import file_sha256
from uml.supervisor.pull.starters import STARTERS

WORDS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]
CONFIG = {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 16,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
SHAPES = {
    "embeddings.word_embeddings.weight": (8, 32),
    "embeddings.position_embeddings.weight": (16, 32),
    "embeddings.LayerNorm.bias": (32,),
    "encoder.layer.0.attention.self.query.weight": (32, 32),
    "encoder.layer.0.output.dense.weight": (32, 64),
    "pooler.dense.weight": (32, 32),
}


def make(folder: Path, config: dict[str, Any] | None = None, **change: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    header, data = {}, b""
    for name, shape in SHAPES.items():
        raw = array("f", [math.sin(i) for i in range(math.prod(shape))]).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets} | change
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def silent(*_: object) -> None:
    pass


def test_conversion_makes_an_embedding_model(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    out = tmp_path / "m.gguf"
    convert(make(tmp_path), out, "Small", lambda *a: seen.append(a))
    facts = read_facts(str(out))
    assert (facts.type, facts.arch, facts.quantization) == ("embedding", "bert", "Q8_0")
    assert (facts.vocab_size, facts.context_length, facts.head_count) == (8, 16, 4)
    assert facts.weights_bytes == 4 * 16 * 32 + 4 * 32 + (8 * 32 + 32 * 32 + 32 * 64) // 32 * 34
    assert seen[-1][1] == seen[-1][2] > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "I32"}, "no BERT model of the known form"),
        ({"dtype": "BF16"}, "corrupt"),
        ({"shape": [5, 5]}, "corrupt"),
        ({"data_offsets": [0, 1 << 40]}, "corrupt"),
    ],
)
def test_weights_of_another_form_are_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidModel, match=told):
        convert(make(tmp_path, **change), tmp_path / "m.gguf", "m", silent)


def test_vocabulary_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="8 words, but"):
        convert(make(tmp_path, {"vocab_size": 9}), tmp_path / "m.gguf", "m", silent)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32))
def test_quantised_values_are_within_half_a_step(values: list[float]) -> None:
    raw = q8_0(array("f", values))
    scale, *whole = struct.unpack("<e32b", raw)
    step = max(map(abs, values)) / 127
    assert scale == pytest.approx(step, rel=1e-3, abs=1e-7)
    for value, number in zip(values, whole, strict=True):
        assert abs(value - number * step) <= step * 0.5001 + 1e-30


def test_halves_are_rounded_away_from_zero() -> None:
    values = [127.0, 0.5, 1.5, 2.5, -0.5, -2.5, 0.0, *[0.0] * 25]
    assert struct.unpack("<e32b", q8_0(array("f", values)))[1:8] == (127, 1, 2, 3, -1, -3, 0)


@pytest.mark.llama
def test_starter_is_the_file_that_was_checked_against_the_original(models_dir: Path) -> None:
    for name in os.listdir(models_dir):
        wanted = {n.lower(): sum for n, sum in STARTERS["embed"].files.items()}
        if name.lower() in wanted:
            assert file_sha256(models_dir / name) == wanted[name.lower()]
            return
    pytest.fail("the embedding starter was not fetched")
