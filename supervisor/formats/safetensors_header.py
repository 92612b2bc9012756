"""Reads the header of a safetensors file and never the tensors: names, types, shapes, places.

What a header says is held against the file: the tensors have to fill it from the first byte behind
the header to the last, each with the bytes that its shape and type come to.

Source: the safetensors format (u64 length, that many bytes of JSON, the data), and the checks and
types of its reference library.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any, TypeGuard

from uml.protocol.errors import InvalidModel

#: Bits per element.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
#: The library takes up to 100 MB; the largest known, of 256 experts in one file, have 10 MB.
_MAX_HEADER = 32 << 20
_MAX_RANK = 16
_MAX_NUMBER = 1 << 53


@dataclass(frozen=True)
class Tensor:
    """size_bytes: of its data; start: where that begins in the file. shape: slowest first."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int
    start: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: str) -> list[Tensor]:
    """The tensors of one file, in the order of their data.

    Raises: InvalidModel with the reason; OSError.
    """
    total = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(8)
        if len(start) < 8:
            raise InvalidModel("truncated: the file ends inside its header")
        length = int.from_bytes(start, "little")
        if length > _MAX_HEADER:
            raise InvalidModel(f"not a safetensors file: a header of {length} bytes")
        raw = f.read(length)
    if len(raw) < length:
        raise InvalidModel("truncated: the file ends inside its header")
    begin = 8 + length
    tensors = [_tensor(name, value, begin) for name, value in _parse(raw).items()]
    tensors.sort(key=lambda t: (t.start, t.size_bytes))
    _check_places(tensors, begin, total)
    return tensors


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InvalidModel(f"not a safetensors file: its header is no JSON ({e})") from None
    if not isinstance(found, dict):
        raise InvalidModel("not a safetensors file: its header is no JSON object")
    found.pop("__metadata__", None)
    return found


def _tensor(name: str, value: Any, begin: int) -> Tensor:
    """begin: of the data, in the file."""
    said = value if isinstance(value, dict) else {}
    kind, shape, places = (said.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _are_numbers(shape) or not _are_numbers(places) or len(places) != 2:
        raise InvalidModel(f"corrupt: tensor {name[:80]!r} has no shape or no place")
    if not isinstance(kind, str) or kind not in BITS:
        raise InvalidModel(f"tensor {name[:80]!r} is of type {kind!r}, which is not known here")
    start, end = places
    bits = BITS[kind] * math.prod(shape)
    if len(shape) > _MAX_RANK or bits != 8 * (end - start):
        raise InvalidModel(
            f"corrupt: tensor {name[:80]!r} of shape {shape[:_MAX_RANK]} in {kind} "
            f"has {end - start} bytes"
        )
    return Tensor(name, kind, tuple(shape), end - start, begin + start)


def _are_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MAX_NUMBER for n in value)


def _check_places(tensors: list[Tensor], begin: int, total: int) -> None:
    end = begin
    for tensor in tensors:
        if tensor.start != end:
            raise InvalidModel(
                f"corrupt: tensor {tensor.name[:80]!r} lies at {tensor.start}, expected at {end}"
            )
        end += tensor.size_bytes
    if end > total:
        raise InvalidModel(f"truncated: its tensors need {end} bytes, the file has {total}")
    if end < total:
        raise InvalidModel(f"corrupt: {total - end} bytes behind the last tensor")
