"""whisper.cpp's ggml files: what model it is, and that the library can be given it.

The library makes an object of anything and crashes when that is used, so everything it relies on
is looked at here: magic, sizes, the vocabulary, and that every tensor is there with all its bytes.

Source: whisper.cpp, `whisper_model_load` and models/convert-pt-to-ggml.py.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts
from uml.supervisor.formats.gguf_header import TYPES

ENDINGS: tuple[str, ...] = (".bin",)
#: "ggml", as a number.
MAGIC = 0x67676D6C
#: Names that whisper.cpp's own tools give to something else.
_OTHERS = ("-encoder-openvino.bin",)
#: Layers of the encoder -> what the size is called. Source: whisper.cpp, `e_model`.
_SIZES = {4: "tiny", 6: "base", 12: "small", 24: "medium", 32: "large"}
#: Vocabulary sizes from here on speak many languages; more than this, Cantonese too.
_MULTILINGUAL, _V3 = 51865, 51866
#: ftype -> label. Source: ggml.h, `ggml_ftype`; thousands are the quantisation's version.
_QUANTS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
}
_MAX_TOKEN_BYTES = 1 << 12
_MAX_TENSORS = 1 << 14

# Tensors of one block of each half. Source: whisper.cpp, `ASR_TENSOR_NAMES`.
_ATTENTION = (
    *("query.weight", "query.bias", "key.weight", "value.weight", "value.bias"),
    *("out.weight", "out.bias"),
)
_REST = ("mlp_ln", "mlp.0", "mlp.2")
_ENDS = (
    "encoder.positional_embedding",
    *(f"encoder.conv{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
    *(f"encoder.ln_post.{part}" for part in ("weight", "bias")),
    "decoder.positional_embedding",
    "decoder.token_embedding.weight",
    *(f"decoder.ln.{part}" for part in ("weight", "bias")),
)


@dataclass(frozen=True)
class _Sizes:
    """The file's own order."""

    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int
    ftype: int


def is_model(name: str, beside: Collection[str]) -> bool:
    """`.bin` alone says nothing: it has to be named as whisper.cpp's models are."""
    del beside
    low = name.lower()
    named = low.startswith("ggml-") or "whisper" in low
    return named and low.endswith(ENDINGS) and not low.endswith(_OTHERS)


def head(name: str) -> str:
    return name


def files(path: str) -> tuple[str, ...]:
    return (path,)


def read_facts(path: str) -> ModelFacts:
    """Raises: InvalidModel, OSError."""
    with open(path, "rb") as f:
        try:
            return _facts(f, os.fstat(f.fileno()).st_size)
        except struct.error:
            raise InvalidModel("the file is cut off") from None


def _facts(f: BinaryIO, total: int) -> ModelFacts:
    (magic,) = _read(f, "<I")
    if magic != MAGIC:
        raise InvalidModel("no whisper.cpp model: it does not begin with ggml's magic")
    sizes = _Sizes(*_read(f, "<11i"))
    _check(sizes)
    _skip_filters(f, sizes, total)
    _skip_vocabulary(f, total)
    tensors = list(_tensors(f, total))
    names = {name for name, _, _ in tensors}
    missing = [name for name in _expected(sizes) if name not in names]
    if missing:
        raise InvalidModel(f"{len(missing)} tensors are missing, {missing[0]} among them")
    many = sizes.n_vocab >= _MULTILINGUAL
    return ModelFacts(
        format="whisper",
        type="stt",
        arch="whisper",
        tasks=("transcribe",),
        name=f"Whisper {_size(sizes)}" + ("" if many else ", English"),
        quantization=_QUANTS.get(sizes.ftype % 1000, "-"),
        parameters=sum(count for _, count, _ in tensors),
        vocab_size=sizes.n_vocab,
        embedding_length=sizes.n_audio_state,
        block_count=sizes.n_audio_layer + sizes.n_text_layer,
        head_count=sizes.n_audio_head,
        weights_bytes=sum(count for _, _, count in tensors),
        license="MIT",
        extra={
            "size": _size(sizes),
            "multilingual": many,
            "cantonese": sizes.n_vocab >= _V3,
            "audio_ctx": sizes.n_audio_ctx,
            "audio_layers": sizes.n_audio_layer,
            "text_ctx": sizes.n_text_ctx,
            "text_state": sizes.n_text_state,
            "text_layers": sizes.n_text_layer,
        },
    )


def _read(f: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, f.read(struct.calcsize(form)))


def _check(sizes: _Sizes) -> None:
    """Source: whisper.cpp takes any; these are the bounds of what was ever trained."""
    bounds = {
        "n_vocab": (51864, 52000),
        "n_audio_ctx": (1, 1 << 14),
        "n_audio_state": (64, 1 << 13),
        "n_audio_head": (1, 256),
        "n_audio_layer": (1, 128),
        "n_text_ctx": (1, 1 << 14),
        "n_text_state": (64, 1 << 13),
        "n_text_head": (1, 256),
        "n_text_layer": (1, 128),
        "n_mels": (1, 1024),
    }
    for name, (low, high) in bounds.items():
        value = getattr(sizes, name)
        if not low <= value <= high:
            raise InvalidModel(f"no whisper model: {name} is {value}")
    if sizes.n_audio_state % sizes.n_audio_head or sizes.n_text_state % sizes.n_text_head:
        raise InvalidModel("no whisper model: its heads do not divide its width")


def _skip_filters(f: BinaryIO, sizes: _Sizes, total: int) -> None:
    """The mel filter bank: float32, mels by bins of the spectrum."""
    mels, bins = _read(f, "<2i")
    if mels != sizes.n_mels or not 0 < bins <= 1 << 14:
        raise InvalidModel(f"corrupt: the mel filters are {mels} by {bins}")
    _skip(f, 4 * mels * bins, total)


def _skip_vocabulary(f: BinaryIO, total: int) -> None:
    (count,) = _read(f, "<i")
    if not 0 < count <= 52000:
        raise InvalidModel(f"corrupt: a vocabulary of {count} words")
    for _ in range(count):
        (length,) = _read(f, "<I")
        if length > _MAX_TOKEN_BYTES:
            raise InvalidModel(f"corrupt: a word of {length} bytes")
        _skip(f, length, total)


def _tensors(f: BinaryIO, total: int) -> Iterator[tuple[str, int, int]]:
    """(name, elements, bytes) of every tensor, up to the file's end."""
    for _ in range(_MAX_TENSORS):
        if f.tell() == total:
            return
        dims, length, kind = _read(f, "<3i")
        if not 1 <= dims <= 4 or not 0 < length <= 256 or kind not in TYPES:
            raise InvalidModel("corrupt: what should be a tensor is none")
        shape = _read(f, f"<{dims}i")
        name = f.read(length).decode("utf-8", "replace")
        if any(n < 1 for n in shape):
            raise InvalidModel(f"corrupt: {name[:80]} has the shape {shape}")
        _, block, width = TYPES[kind]
        if shape[0] % block:
            raise InvalidModel(f"corrupt: {name[:80]} has rows of {shape[0]}")
        elements = math.prod(shape)
        _skip(f, elements // block * width, total)
        yield name, elements, elements // block * width
    raise InvalidModel("corrupt: too many tensors")


def _skip(f: BinaryIO, count: int, total: int) -> None:
    if f.tell() + count > total:
        raise InvalidModel("the file is cut off")
    f.seek(count, os.SEEK_CUR)


def _expected(sizes: _Sizes) -> Iterator[str]:
    yield from _ENDS
    for half, layers in (("encoder", sizes.n_audio_layer), ("decoder", sizes.n_text_layer)):
        attentions = ("attn", "cross_attn") if half == "decoder" else ("attn",)
        for layer in range(layers):
            stem = f"{half}.blocks.{layer}."
            for attention in attentions:
                yield from (f"{stem}{attention}.{part}" for part in _ATTENTION)
                yield from (f"{stem}{attention}_ln.{part}" for part in ("weight", "bias"))
            for rest in _REST:
                yield from (f"{stem}{rest}.{part}" for part in ("weight", "bias"))


def _size(sizes: _Sizes) -> str:
    """tiny, base ... large-v3, or "24+2 layers" for a distilled one."""
    size = _SIZES.get(sizes.n_audio_layer)
    if size == "large":
        size += "-v3" if sizes.n_vocab >= _V3 else ""
        size += "-turbo" if sizes.n_text_layer == 4 else ""
    same = sizes.n_text_layer in (sizes.n_audio_layer, 4)
    return size if size and same else f"{sizes.n_audio_layer}+{sizes.n_text_layer} layers"
