"""Speech models are known by their headers; what would crash a library is refused with a reason."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supervisor.formats.speech import CONFIG, TINY, onnx, voice, whisper, whisper_tensors
from uml.protocol.errors import InvalidModel
from uml.supervisor.formats import ending_of, files, format_of, is_model, read_facts


def put(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_whisper_file_says_its_size_language_and_quantisation(tmp_path: Path) -> None:
    facts = read_facts(put(tmp_path / "ggml-x.bin", whisper()))
    assert (facts.format, facts.type, facts.tasks) == ("whisper", "stt", ("transcribe",))
    assert facts.quantization == "F16" and not facts.extra["multilingual"]
    assert facts.weights_bytes == 64 * len(whisper_tensors())
    tiny = (51865, 8, 64, 2, 4, 8, 64, 2, 4, 4, 2009)
    facts = read_facts(put(tmp_path / "ggml-y.bin", whisper(tiny, whisper_tensors(4, 4))))
    assert facts.extra["size"] == "tiny" and facts.extra["multilingual"]
    assert facts.quantization == "Q5_1" and facts.name == "Whisper tiny"
    turbo = (51866, 8, 64, 2, 32, 8, 64, 2, 4, 4, 1)
    facts = read_facts(put(tmp_path / "ggml-z.bin", whisper(turbo, whisper_tensors(32, 4))))
    assert facts.extra["size"] == "large-v3-turbo" and facts.extra["cantonese"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut off"),
        (b"lmgg", "cut off"),
        (b"GGUF" + bytes(100), "magic"),
        (b"silero!!" + bytes(100), "magic"),
        (struct.pack("<12i", 0x67676D6C, 32000, *TINY[1:]), "n_vocab is 32000"),
        (whisper((51864, 8, 63, 2, 1, *TINY[5:])), "n_audio_state is 63"),
        (whisper((51864, 8, 64, 3, 1, *TINY[5:])), "divide"),
        (whisper()[:-1], "cut off"),
        (whisper()[:70], "cut off"),
        (whisper() + b"tail", "cut off"),
        (whisper(tensors=whisper_tensors()[1:]), "encoder.positional_embedding"),
        (whisper(tensors=[]), "tensors are missing"),
        (whisper(words=60000), "60000 words"),
    ],
)
def test_whisper_file_that_would_crash_the_library_is_refused(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    with pytest.raises(InvalidModel, match=reason):
        read_facts(put(tmp_path / "ggml-x.bin", data))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_speech_models_are_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("m")
    raw = bytearray(data.draw(st.sampled_from([whisper(), onnx(1000)])))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for name in ("ggml-m.bin", "en_US-m-low.onnx"):
        (folder / f"{name}.json").write_text(json.dumps(CONFIG))
        try:
            read_facts(put(folder / name, bytes(raw[:cut])))
        except InvalidModel as e:
            assert e.message


def test_voice_says_its_language_quality_rate_and_speakers(tmp_path: Path) -> None:
    path = voice(tmp_path)
    facts = read_facts(str(path))
    assert (facts.format, facts.type, facts.tasks) == ("piper", "tts", ("speak",))
    assert facts.quantization == "medium" and facts.name == "joe"
    assert facts.extra == {"language": "en-US", "sample_rate": 22050, "speakers": []}
    assert files(str(path)) == (str(path), f"{path}.json")
    many = voice(tmp_path, "de_DE-mls-low", num_speakers=3, speaker_id_map={"b": 1, "a": 0})
    assert read_facts(str(many)).extra["speakers"] == ["a", "b", "2"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audio": {}}, "sample_rate"),
        ({"audio": {"sample_rate": 22050.5}}, "22050.5"),
        ({"audio": {"sample_rate": 4_000_000_000}}, "4000000000"),
        ({"audio": None}, "no Piper voice"),
        ({"num_speakers": 0}, "0 speakers"),
        ({"num_speakers": "many"}, "'many' speakers"),
        ({"phoneme_id_map": {}}, "no phonemes"),
        ({"phoneme_type": "pinyin"}, "'pinyin' are not supported"),
        ({"num_speakers": 2, "speaker_id_map": {"a": "x"}}, "no Piper voice"),
    ],
)
def test_voice_with_a_wrong_configuration_is_refused(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidModel, match=reason):
        read_facts(str(voice(tmp_path, **change)))


def test_voice_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    path = voice(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="cut off"):
        read_facts(str(path))
    path.write_bytes(b"no network at all")
    with pytest.raises(InvalidModel, match="no ONNX file"):
        read_facts(str(path))
    config = Path(f"{path}.json")
    config.write_text("[1, 2]")
    path.write_bytes(onnx())
    with pytest.raises(InvalidModel, match="no Piper voice"):
        read_facts(str(path))
    config.write_text("{")
    with pytest.raises(InvalidModel, match="not JSON"):
        read_facts(str(path))
    config.unlink()
    with pytest.raises(InvalidModel, match=r"en_US-joe-medium\.onnx\.json is missing"):
        read_facts(str(path))


def test_endings_that_many_programs_use_are_no_models_by_themselves() -> None:
    assert is_model("ggml-base.en.bin") and is_model("my-whisper-small.bin")
    assert not is_model("pytorch_model.bin")
    assert not is_model("ggml-base-encoder-openvino.bin")
    assert is_model("en_GB-alan-low.onnx") and is_model("x.onnx", ["x.onnx", "x.onnx.json"])
    assert not is_model("model.onnx", ["model.onnx", "config.json"])
    assert not is_model("x.onnx.json", ["x.onnx", "x.onnx.json"])
    assert format_of("/a/en_GB-alan-low.onnx") == "piper" and format_of("sha256-12") == "gguf"
    assert ending_of("a.onnx.json") == ".onnx.json" and ending_of("a.txt") is None
