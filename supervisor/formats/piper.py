"""Piper's voices: an ONNX network, and a JSON file beside it that says what it speaks.

Source: piper's docs/TRAINING.md and `PiperConfig.from_dict`; of the ONNX file's first bytes:
onnx.proto (a protobuf message `ModelProto`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from typing import Any, BinaryIO

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts

_CONFIG = ".json"
ENDINGS: tuple[str, ...] = (".onnx", ".onnx" + _CONFIG)
#: en_US-joe-medium.onnx: language, name, quality.
VOICE = re.compile(
    r"(?P<language>[a-z]{2,3}_[A-Z]{2})-(?P<name>[^-]+)-(?P<quality>x_low|low|medium|high)"
)
_MAX_CONFIG_BYTES = 8 << 20
#: Wire types of protobuf that an ONNX file's outermost fields have.
_NUMBER, _BYTES = 0, 2
_MAX_FIELDS = 1000
#: Those that piper needs nothing further for.
_PHONEMES = ("espeak", "text")
_MAX_SPEAKERS = 100_000
_QUALITIES = ("x_low", "low", "medium", "high")


def is_model(name: str, beside: Collection[str]) -> bool:
    """ONNX files are many things: a voice has its JSON file beside it, or a voice's name."""
    if not name.lower().endswith(ENDINGS[0]):
        return False
    return name + _CONFIG in beside or VOICE.fullmatch(name[: -len(ENDINGS[0])]) is not None


def head(name: str) -> str:
    return name


def files(path: str) -> tuple[str, ...]:
    """The network and its configuration. Raises: InvalidModel when the latter is missing."""
    config = path + _CONFIG
    if not os.path.exists(config):
        raise InvalidModel(f"its configuration {os.path.basename(config)} is missing")
    return path, config


def read_facts(path: str) -> ModelFacts:
    """Raises: InvalidModel, OSError."""
    network, config_path = files(path)
    _check_network(network)
    config = _read_config(config_path)
    try:
        return _facts(path, config)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        name = os.path.basename(config_path)
        raise InvalidModel(f"{name} is no Piper voice's configuration: {e!r}") from None


def _check_network(path: str) -> None:
    """That it is a protobuf message of a version and large fields, and all of them are there."""
    total = os.path.getsize(path)
    with open(path, "rb") as f:
        if f.read(1) != b"\x08" or not 1 <= _varint(f) <= 64:
            raise InvalidModel("the network is no ONNX file")
        for _ in range(_MAX_FIELDS):
            if f.tell() >= total:
                break
            kind = _varint(f) & 7
            if kind not in (_NUMBER, _BYTES):
                raise InvalidModel("the network is no ONNX file")
            length = _varint(f)
            if kind == _BYTES:
                f.seek(length, os.SEEK_CUR)
        if f.tell() != total:
            raise InvalidModel("the network is cut off")


def _varint(f: BinaryIO) -> int:
    """Source: protobuf's encoding guide. Raises: InvalidModel."""
    value = 0
    for shift in range(0, 64, 7):
        byte = f.read(1)
        if not byte:
            raise InvalidModel("the network is cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise InvalidModel("the network is no ONNX file")


def _read_config(path: str) -> dict[str, Any]:
    with open(path, "rb") as f:
        raw = f.read(_MAX_CONFIG_BYTES + 1)
    try:
        found = json.loads(raw) if len(raw) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError) as e:
        raise InvalidModel(f"{os.path.basename(path)} is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise InvalidModel(f"{os.path.basename(path)} is no Piper voice's configuration")
    return found


def _facts(path: str, config: dict[str, Any]) -> ModelFacts:
    rate = config["audio"]["sample_rate"]
    if type(rate) is not int or not 8000 <= rate <= 48000:
        raise ValueError(f"a sample rate of {rate!r}")
    count = config.get("num_speakers", 1)
    if type(count) is not int or not 1 <= count <= _MAX_SPEAKERS:
        raise ValueError(f"{count!r} speakers")
    if not isinstance(config["phoneme_id_map"], dict) or not config["phoneme_id_map"]:
        raise ValueError("no phonemes")
    phonemes = config.get("phoneme_type", "espeak")
    if phonemes not in _PHONEMES:
        raise ValueError(f"phonemes of the kind {phonemes!r} are not supported")
    named = VOICE.fullmatch(os.path.basename(path)[: -len(ENDINGS[0])])
    size = os.path.getsize(path)
    quality = str(config["audio"].get("quality") or (named and named["quality"]) or "")
    return ModelFacts(
        format="piper",
        type="tts",
        arch="vits",
        tasks=("speak",),
        name=str(config.get("dataset") or (named and named["name"]) or "")[:200],
        quantization=quality if quality in _QUALITIES else "",
        weights_bytes=size,
        extra={
            "language": _language(config, named),
            "sample_rate": rate,
            "speakers": _speakers(config, count),
        },
    )


def _language(config: dict[str, Any], named: re.Match[str] | None) -> str:
    """As browsers write it: en-US."""
    said = config.get("language") or {}
    code = said.get("code") or (named and named["language"]) or config["espeak"]["voice"]
    return str(code)[:40].replace("_", "-")


def _speakers(config: dict[str, Any], count: int) -> list[str]:
    """Their names by number; none for a voice that is one speaker."""
    if count == 1:
        return []
    ids = config.get("speaker_id_map") or {}
    by_number = {int(number): str(name)[:100] for name, number in ids.items()}
    return [by_number.get(n, str(n)) for n in range(count)]
