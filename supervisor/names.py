"""Model ids: short, stable, lower case; and the nearest ones to a name nobody knows. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
#: A quantisation at the end of a file's name: `.Q4_K_M`, `-q8_0`, `_IQ2_XS`, `-F16`, `.mxfp4`.
_QUANT = re.compile(
    r"[-_.](?P<quant>(?:ud-)?(?:i?q\d+(?:_[a-z0-9]+)*|tq\d_\d|bf16|f16|f32|fp16|mxfp4(?:_moe)?))$",
    re.IGNORECASE,
)
_ENDING = re.compile(r"\.(gguf|fake\.json|bin|onnx)$", re.IGNORECASE)
#: Piper's way of naming voices, and whisper.cpp's of naming models.
_VOICE = re.compile(r"[a-z]{2,3}_[A-Z]{2}-(?P<name>[^-]+)-(?P<quality>x_low|low|medium|high)\.onnx")
_GGML = re.compile(r"ggml-(?P<name>.+\.bin)", re.IGNORECASE)


def split_name(file_name: str) -> tuple[str, str]:
    """(id without quantisation, quantisation or "") of a model file's name.

    `SmolLM2-135M-Instruct.Q4_1.gguf` -> (`smollm2-135m-instruct`, `q4-1`); `ggml-tiny.en.bin` ->
    (`whisper-tiny-en`, ""); of a voice the quality: `en_US-joe-medium.onnx` -> (`joe`, `medium`).
    """
    if voice := _VOICE.fullmatch(file_name):
        return slug(voice["name"]), slug(voice["quality"])
    if ggml := _GGML.fullmatch(file_name):
        name = re.sub(r"\.en\b", "-en", ggml["name"])
        return split_name(name if "whisper" in name.lower() else f"whisper-{name}")
    stem = _SHARD.sub("", _ENDING.sub("", file_name))
    match = _QUANT.search(stem)
    quant = slug(match["quant"]) if match else ""
    return slug(stem[: match.start()] if match else stem) or "model", quant


def slug(text: str) -> str:
    """Lower case, words joined by single dashes; dots inside version numbers stay."""
    lowered = re.sub(r"[^a-z0-9.]+", "-", text.lower())
    return re.sub(r"-{2,}", "-", lowered).strip("-.")


def make_id(file_name: str, quantization: str, taken: Collection[str]) -> str:
    """An id that is not in `taken`: the plain one, else with the quantisation, else numbered."""
    plain, quant = split_name(file_name)
    candidates = [plain, f"{plain}-{quant or slug(quantization)}".rstrip("-")]
    for candidate in candidates:
        if candidate not in taken:
            return candidate
    number = 2
    while f"{candidates[1]}-{number}" in taken:
        number += 1
    return f"{candidates[1]}-{number}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that look like `name`, best first: as a whole, or by how they begin."""
    wanted = name.lower()

    def likeness(other: str) -> float:
        start = other[: len(wanted) + 1]
        inside = 0.9 if wanted and wanted in other else 0.0
        return max(
            inside, *(difflib.SequenceMatcher(None, wanted, o).ratio() for o in (other, start))
        )

    scored = sorted(((likeness(n.lower()), n) for n in set(known)), key=lambda p: (-p[0], p[1]))
    return [n for score, n in scored[:count] if score >= 0.6]
