"""A header is read right, or refused with its reason; nothing else can happen."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supervisor.formats.ggufs import LLAMA, TENSORS, gguf, text, value, write
from uml.protocol.errors import InvalidModel
from uml.supervisor.formats import gguf_header, read_facts
from uml.supervisor.formats.gguf import files


def test_facts_of_a_chat_model(tmp_path: Path) -> None:
    facts = read_facts(str(write(tmp_path / "m.gguf")))
    assert (facts.type, facts.arch, facts.tasks) == ("llm", "llama", ("chat", "complete"))
    assert facts.quantization == "Q4_0" and facts.context_length == 8192
    assert facts.head_count_kv == (2, 2, 2) and facts.key_length == facts.value_length == 16
    assert facts.weights_bytes == 64 * 3 * 4 + 64 * 64 // 32 * 18
    assert facts.parameters == 64 * 3 + 64 * 64 and facts.vocab_size == 3
    assert facts.embedding_bytes == 64 * 3 * 4


def test_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    meta = {k: v for k, v in LLAMA.items() if k != "tokenizer.chat_template"}
    assert read_facts(str(write(tmp_path / "m.gguf", meta))).tasks == ("complete",)


@pytest.mark.parametrize(
    ("change", "kind", "tasks"),
    [
        ({"general.architecture": "bert"}, "embedding", ("embed",)),
        ({"llama.pooling_type": 3}, "embedding", ("embed",)),
        ({"llama.pooling_type": 4}, "rerank", ("rerank",)),
        ({"general.architecture": "clip"}, "projector", ()),
    ],
)
def test_type_is_told_from_architecture_and_pooling(
    tmp_path: Path, change: dict[str, Any], kind: str, tasks: tuple[str, ...]
) -> None:
    facts = read_facts(str(write(tmp_path / "m.gguf", LLAMA | change)))
    assert (facts.type, facts.tasks) == (kind, tasks)


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    meta = LLAMA | {"llama.attention.head_count_kv": [2, 0, 4]}
    assert read_facts(str(write(tmp_path / "m.gguf", meta))).head_count_kv == (2, 0, 4)


@pytest.mark.parametrize(
    ("arch", "extra", "layers"),
    [
        ("gemma3", {}, (True, True, True, True, True, False, True)),
        ("gemma2", {}, (True, False, True, False, True, False, True)),
        ("smallthinker", {}, (False, True, True, True, False, True, True)),
        ("other", {}, (False,) * 7),
        ("other", {"attention.sliding_window_pattern": 2}, (True, False) * 3 + (True,)),
        ("other", {"attention.sliding_window_pattern": [True, False]}, (True,) + (False,) * 6),
    ],
)
def test_sliding_window_layers(
    tmp_path: Path, arch: str, extra: dict[str, Any], layers: tuple[bool, ...]
) -> None:
    meta: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": 7,
        f"{arch}.attention.sliding_window": 512,
    }
    meta |= {f"{arch}.{k}": v for k, v in extra.items()}
    assert read_facts(str(write(tmp_path / "m.gguf", meta))).swa_layers == layers


def test_quantisation_falls_back_on_the_tensors(tmp_path: Path) -> None:
    meta = {k: v for k, v in LLAMA.items() if k != "general.file_type"}
    assert read_facts(str(write(tmp_path / "m.gguf", meta))).quantization == "Q4_0"


def test_shards_are_one_model(tmp_path: Path) -> None:
    one = write(tmp_path / "m-00001-of-00002.gguf", tensors={"a": ((32,), 0, 128)})
    with pytest.raises(InvalidModel, match=r"part 2 of 2 is missing: m-00002-of-00002\.gguf"):
        read_facts(str(one))
    two = write(tmp_path / "m-00002-of-00002.gguf", tensors={"b": ((64,), 0, 256)})
    assert files(str(one)) == (str(one), str(two))
    assert read_facts(str(one)).weights_bytes == 128 + 256


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a GGUF file: an empty file"),
        (b"PK\x03\x04 something else", "not a GGUF file: it begins with b'PK"),
        (b"GGUF\x01\x00\x00\x00" + b"\0" * 64, "version 1 is not known"),
        (b"GGUF\x00\x00\x00\x03" + b"\0" * 64, "big-endian"),
        (b"GGUF\x03\x00\x00\x00", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "corrupt: 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62), "truncated"),
        (gguf({"x": 1}, {}), "general.architecture is missing"),
        (gguf(LLAMA, {"t": ((64,), 77, 256)}), "of type 77"),
        (gguf(LLAMA, {"t": ((33,), 2, 256)}), "rows of 33 in Q4_0"),
        (gguf(LLAMA | {"general.alignment": 0}, TENSORS), "alignment 0"),
    ],
)
def test_broken_file_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=reason):
        read_facts(str(path))


def test_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(InvalidModel, match=r"truncated: its tensors need \d+ bytes"):
        read_facts(str(path))


def test_array_that_claims_to_be_huge_costs_nothing(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k")
    path = tmp_path / "m.gguf"
    for kind in (0, 8, 9):
        path.write_bytes(head + struct.pack("<IIQ", 9, kind, 1 << 40) + b"\0" * 64)
        with pytest.raises(InvalidModel):
            read_facts(str(path))


def test_arrays_nested_without_end_are_refused(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 1) * 2000
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + value([])[:4] + nested)
    with pytest.raises(InvalidModel):
        read_facts(str(path))


def test_header_without_end_is_refused_soon(tmp_path: Path) -> None:
    """Sizes that the file does hold, but that no model has: millions of values to keep."""
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 9)
    empty = struct.pack("<IQ", 4, 0)
    for content in (
        head + struct.pack("<IQ", 9, 1 << 20) + empty * (1 << 20),
        head + struct.pack("<IQ", 8, 9 << 20) + bytes(8) * (9 << 20),
    ):
        path.write_bytes(content)
        begin = time.process_time()
        with pytest.raises(InvalidModel, match="corrupt"):
            read_facts(str(path))
        assert time.process_time() - begin < 5


@pytest.mark.parametrize("shift", range(0, 40, 3))
def test_header_longer_than_one_read_is_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    monkeypatch.setattr(gguf_header, "_READ_AHEAD", 100)
    words = [f"word {n}" for n in range(5000)]
    meta = {"k": "x" * shift} | LLAMA | {"tokenizer.ggml.tokens": words, "general.license": "mit"}
    facts = read_facts(str(write(tmp_path / "m.gguf", meta)))
    assert (facts.vocab_size, facts.license, facts.embedding_length) == (5000, "mit", 64)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    content = bytearray(gguf(LLAMA, {"a": ((32,), 0, 128), "b": ((32,), 0, 128)}))
    at = content.rindex(struct.pack("<IQ", 0, 128))
    content[at : at + 12] = struct.pack("<IQ", 0, 0)
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match="tensor 'b' lies at 0, expected at 128"):
        read_facts(str(path))


@pytest.mark.parametrize(
    ("meta", "tensors", "reason"),
    [
        ({"general.type": "adapter"}, TENSORS, "a LoRA adapter"),
        ({"general.type": "imatrix"}, TENSORS, "an importance matrix"),
        ({}, {}, "holds no tensors"),
    ],
)
def test_file_that_is_no_model_of_its_own_is_refused(
    tmp_path: Path, meta: dict[str, Any], tensors: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidModel, match=reason):
        read_facts(str(write(tmp_path / "m.gguf", LLAMA | meta, tensors=tensors)))


def test_metadata_of_an_odd_type_counts_as_absent(tmp_path: Path) -> None:
    odd = {k: ["x"] for k in LLAMA if k.startswith("llama.") or k == "general.file_type"}
    facts = read_facts(str(write(tmp_path / "m.gguf", LLAMA | odd)))
    assert facts.context_length == 0 and facts.head_count_kv == ()


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'{"weights_bytes": "x"}', b"[" * 100_000, b"\xff"]
)
def test_fake_model_that_is_broken_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.fake.json"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match="not a fake model"):
        read_facts(str(path))


@settings(max_examples=300, deadline=1000)
@given(data=st.data())
def test_any_mutation_gives_facts_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(gguf(LLAMA, TENSORS))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 900))
        if at < len(whole):
            whole[at] = data.draw(st.sampled_from([0, 1, 7, 8, 9, 127, 128, 255]))
    whole = whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    path = tmp_path_factory.getbasetemp() / "mutant.gguf"
    path.write_bytes(whole)
    try:
        facts = read_facts(str(path))
    except InvalidModel as e:
        assert e.message
    else:
        assert facts.weights_bytes <= len(whole)
