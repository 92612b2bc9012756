"""Reads a GGUF header with struct: no arrays of the vocabulary, bounded memory and time.

The file is read and not mapped: touching a mapped page of a file that its writer has just cut
short kills the process. Every size is checked against the file's before anything is made of it.

Source: ggml's docs/gguf.md (versions 2 and 3), gguf.cpp's checks, ggml.c's table of block sizes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from uml.protocol.errors import InvalidModel

_T = TypeVar("_T")

MAGIC = b"GGUF"

#: ggml type -> (name, elements per block, bytes per block). Source: ggml.c `type_traits`.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U64, _U32 = _SCALARS[10], _SCALARS[4]
#: Longer arrays are counted, not kept.
_KEEP = 4096
#: The longest headers (vocabularies of 262,144 tokens) take about 10 MB and keep 10,000 values.
_MAX_HEADER = 64 << 20
_MAX_VALUES = 1 << 18
_MAX_TENSORS = 1 << 17
_MAX_RANK = 4
_ALIGNMENTS = {1 << n for n in range(21)}
_READ_AHEAD = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """size_bytes: of its data; offset: from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Counted:
    """A long array of which only the length is known."""

    length: int


@dataclass(frozen=True)
class Header:
    version: int
    metadata: dict[str, Any]
    tensors: list[Tensor]


@dataclass(frozen=True)
class Vocabulary:
    """kind: the tokenizer's. size: tokens. tokens: one after the other as the file has them, the
    first few left out."""

    kind: str
    size: int
    tokens: bytes


class _Cursor:
    """A position in a file, of which only the header is ever read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size, self.at = file, size, 0
        self.data = b""
        self._values = 0

    def need(self, count: int) -> int:
        """Step over `count` bytes; where they begin."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            self._read(self.at)
        return start

    def _read(self, end: int) -> None:
        if end > self.size:
            raise InvalidModel("truncated: the file ends inside its header")
        if end > _MAX_HEADER:
            raise InvalidModel(f"corrupt: a header of more than {_MAX_HEADER} bytes")
        # Twice what there is, so that few reads are needed whatever the header's length.
        wanted = max(end, _READ_AHEAD, 2 * len(self.data)) - len(self.data)
        self.data += self._file.read(wanted)
        if end > len(self.data):
            raise InvalidModel("truncated: the file ends inside its header")

    def scalar(self, kind: struct.Struct) -> Any:
        start = self.need(kind.size)  # first, since it replaces `data`
        return kind.unpack_from(self.data, start)[0]

    def string(self) -> str:
        length = self.scalar(_U64)
        start = self.need(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Hundreds of thousands of tokens: the hot loop of reading a header."""
        data, at, unpack = self.data, self.at, _U64.unpack_from
        last = len(data) - 8
        for _ in range(count):
            if at > last:
                self._read(at + 8)
                data = self.data
                last = len(data) - 8
            at += 8 + unpack(data, at)[0]
        self.at = at
        self.need(0)

    def value(self, kind: int, depth: int = 0) -> Any:
        self._count(1)
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < 4:
            return self.array(depth)
        raise InvalidModel(f"corrupt: a metadata value of unknown type {kind}")

    def _count(self, values: int) -> None:
        """What is kept is bounded, too."""
        self._values += values
        if self._values > _MAX_VALUES:
            raise InvalidModel(f"corrupt: more than {_MAX_VALUES} metadata values")

    def array(self, depth: int) -> Any:
        kind, count = self.scalar(_U32), self.scalar(_U64)
        if kind in _SCALARS:
            item = _SCALARS[kind]
            start = self.need(count * item.size)
            if count > _KEEP:
                return Counted(count)
            self._count(count)
            return [item.unpack_from(self.data, start + i * item.size)[0] for i in range(count)]
        if count > (self.size - self.at) // 8:
            raise InvalidModel(
                f"corrupt: an array of {count} values in a file of {self.size} bytes"
            )
        if kind == _STRING and count > _KEEP:
            self.skip_strings(count)
            return Counted(count)
        return [self.value(kind, depth + 1) for _ in range(count)]


def read_header(path: str) -> Header:
    """The header of one GGUF file, every size in it checked against the file's.

    Raises: InvalidModel with the reason; OSError.
    """
    return _open(path, _parse)


def read_vocabulary(path: str, skip: int = 0) -> Vocabulary:
    """The tokens of one GGUF file, all but the first `skip`. Raises: as `read_header`."""
    return _open(path, lambda cursor, _: _vocabulary(cursor, skip))


def _open(path: str, read: Callable[[_Cursor, int], _T]) -> _T:
    """What `read` makes of the file and its version."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(8)
        if len(start) < 8 or start[:4] != MAGIC:
            found = "an empty file" if not start else f"it begins with {start[:4]!r}"
            raise InvalidModel(f"not a GGUF file: {found}")
        version = int.from_bytes(start[4:], "little")
        if version not in (2, 3):
            big = int.from_bytes(start[4:], "big")
            hint = " (a big-endian file)" if big in (2, 3) else ""
            raise InvalidModel(f"GGUF version {version} is not known here{hint}")
        f.seek(0)
        return read(_Cursor(f, size), version)


def _vocabulary(cursor: _Cursor, skip: int) -> Vocabulary:
    cursor.need(16)
    pairs = cursor.scalar(_U64)
    kind, size, tokens = "", 0, b""
    for _ in range(min(pairs, _MAX_VALUES)):
        key, of = cursor.string(), cursor.scalar(_U32)
        if key == "tokenizer.ggml.tokens" and of == _ARRAY:
            of, size = cursor.scalar(_U32), cursor.scalar(_U64)
            if of != _STRING or size > (cursor.size - cursor.at) // 8:
                raise InvalidModel("corrupt: its tokens are no texts")
            cursor.skip_strings(min(skip, size))
            start = cursor.at
            cursor.skip_strings(size - min(skip, size))
            tokens = cursor.data[start : cursor.at]
            continue
        value = cursor.value(of)
        kind = str(value) if key == "tokenizer.ggml.model" else kind
    return Vocabulary(kind, size, tokens)


def _parse(cursor: _Cursor, version: int) -> Header:
    cursor.need(8)
    tensor_count, pair_count = cursor.scalar(_U64), cursor.scalar(_U64)
    if tensor_count > _MAX_TENSORS or pair_count > _MAX_VALUES:
        raise InvalidModel(f"corrupt: {tensor_count} tensors and {pair_count} metadata pairs")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar(_U32))
    tensors = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
        raise InvalidModel(f"corrupt: alignment {alignment!r}")
    end = 0
    for tensor in tensors:
        if tensor.offset != end:
            raise InvalidModel(
                f"corrupt: tensor {tensor.name[:40]!r} lies at {tensor.offset}, expected at {end}"
            )
        end += _round_up(tensor.size_bytes, alignment)
    # Some writers leave out the last tensor's padding.
    last = tensors[-1] if tensors else None
    data_bytes = last.offset + last.size_bytes if last else 0
    needed = _round_up(cursor.at, alignment) + data_bytes
    if last and needed > cursor.size:
        raise InvalidModel(
            f"truncated: its tensors need {needed} bytes, the file has {cursor.size}"
        )
    return Header(version, metadata, tensors)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _tensor(cursor: _Cursor) -> Tensor:
    name, rank = cursor.string(), cursor.scalar(_U32)
    if rank > _MAX_RANK:
        raise InvalidModel(f"corrupt: tensor {name[:40]!r} has {rank} dimensions")
    shape = tuple(cursor.scalar(_U64) for _ in range(rank))
    kind, offset = cursor.scalar(_U32), cursor.scalar(_U64)
    if kind not in TYPES:
        raise InvalidModel(f"tensor {name[:40]!r} is of type {kind}, which is not known here")
    label, block, block_bytes = TYPES[kind]
    elements = math.prod(shape)
    if shape and shape[0] % block:
        raise InvalidModel(f"corrupt: tensor {name[:40]!r} has rows of {shape[0]} in {label}")
    return Tensor(name, shape, label, elements // block * block_bytes, offset)
