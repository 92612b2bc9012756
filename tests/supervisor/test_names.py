"""Ids people can type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.supervisor.names import make_id, nearest, split_name


@pytest.mark.parametrize(
    ("file", "plain", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct", "q4-1"),
        ("gemma-3-270m.Q4_K_M.gguf", "gemma-3-270m", "q4-k-m"),
        ("all-MiniLM-L6-v2.Q8_0.gguf", "all-minilm-l6-v2", "q8-0"),
        ("Qwen2.5-Coder-0.5B-Instruct-IQ2_XS.gguf", "qwen2.5-coder-0.5b-instruct", "iq2-xs"),
        ("Big-UD-Q4_K_XL-00001-of-00003.gguf", "big", "ud-q4-k-xl"),
        ("model-f16.gguf", "model", "f16"),
        ("q8.gguf", "q8", ""),
        ("???.gguf", "model", ""),
        ("a.fake.json", "a", ""),
        ("ggml-tiny.en.bin", "whisper-tiny-en", ""),
        ("ggml-large-v3-turbo-q5_0.bin", "whisper-large-v3-turbo", "q5-0"),
        ("my-whisper-small.bin", "my-whisper-small", ""),
        ("en_US-joe-medium.onnx", "joe", "medium"),
        ("de_DE-thorsten_emotional-x_low.onnx", "thorsten-emotional", "x-low"),
        ("own.onnx", "own", ""),
    ],
)
def test_name_splits_into_id_and_quantisation(file: str, plain: str, quant: str) -> None:
    assert split_name(file) == (plain, quant)


def test_second_file_of_a_model_gets_its_quantisation_then_a_number() -> None:
    assert make_id("m.Q4_0.gguf", "Q4_0", set()) == "m"
    assert make_id("m.Q8_0.gguf", "Q8_0", {"m"}) == "m-q8-0"
    assert make_id("m.Q8_0.gguf", "Q8_0", {"m", "m-q8-0"}) == "m-q8-0-2"


@given(st.text(max_size=60), st.sets(st.text(max_size=8), max_size=5))
def test_any_file_name_gives_an_id_that_is_free_and_typeable(name: str, taken: set[str]) -> None:
    made = make_id(name, "Q4_0", taken)
    assert made and made not in taken and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def test_nearest_finds_typos_and_beginnings() -> None:
    known = ["smollm2-135m-instruct", "gemma-3-270m", "all-minilm-l6-v2"]
    assert nearest("smolm2", known)[0] == "smollm2-135m-instruct"
    assert nearest("gema-3-270m", known) == ["gemma-3-270m"]
    assert nearest("minilm", known) == ["all-minilm-l6-v2"]
    assert nearest("zzzz", known) == []
