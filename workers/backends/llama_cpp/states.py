"""States of one sequence as llama.cpp writes them, free of how many streams its cache has: pure.

A state begins with a magic number and the sequence. Then it holds one part per cache (models with a
sliding window have two), and a part says for each stream of the cache what it has: a sequence's own
stream its cells, the others nothing. A *packed* state is as if the cache had one stream, so it fits
into a context however its cells are divided.

Source: llama.cpp's llama-context.cpp, `state_seq_get_data`, and llama-kv-cache.cpp, `state_write`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

_U32 = struct.Struct("<I")
#: The magic number and the sequence.
_HEAD = 8
#: Type and bytes of a row; or, of transposed values, type, bytes of an element, elements.
_ROW = struct.Struct("<iQ")
_ELEMENT = struct.Struct("<iII")
#: Of each cell: its position, the number of its sequences (one), the sequence.
_CELL = 12


@dataclass(frozen=True)
class State:
    """head: what comes before the parts. blocks: what each part says of the sequence's stream.
    Both are views of what was read."""

    head: Any
    blocks: list[Any]

    def size(self, streams: int = 1) -> int:
        """Bytes for a cache of so many streams; of one stream: packed."""
        each = sum(len(block) + _U32.size * streams for block in self.blocks)
        return len(self.head) + each

    def pieces(self, streams: int = 1, stream: int = 0) -> list[Any]:
        """What a state of the sequence in `stream` is made of, `size(streams)` bytes in all."""
        before = np.frombuffer(_U32.pack(streams) + _U32.pack(0) * stream, np.uint8)
        after = np.zeros(_U32.size * (streams - 1 - stream), np.uint8)
        return [self.head, *(p for block in self.blocks for p in (before, block, after))]

    def after(self, position: int) -> State:
        """Without the cells before `position`. Raises: ValueError where they are not the first."""
        return State(self.head, [_after(block, position) for block in self.blocks])

    def write(self, target: Any, streams: int = 1, stream: int = 0) -> None:
        """Into `target`, uint8, `size(streams)` of them."""
        at = 0
        for piece in self.pieces(streams, stream):
            target[at : at + len(piece)] = piece
            at += len(piece)


def read(state: Any, streams: int = 1, stream: int = 0) -> State:
    """Of the sequence in `stream`, from its bytes (uint8). Raises: ValueError."""
    return State(state[:_HEAD], _blocks(state, streams, stream))


def _blocks(state: Any, streams: int, stream: int) -> list[Any]:
    """What each part says of `stream`."""
    view, at, found = memoryview(state), _HEAD, []
    try:
        while at < len(state):
            (count,) = _U32.unpack_from(view, at)
            at += _U32.size
            if count != streams:
                raise ValueError(f"a state of {count} streams, not {streams}")
            for i in range(streams):
                end = _end(view, at)
                if i == stream:
                    found.append(state[at:end])
                elif end != at + _U32.size:
                    raise ValueError(f"stream {i} has cells, not only {stream}")
                at = end
    except struct.error:
        raise ValueError("a state that ends too early") from None
    if at != len(state):
        raise ValueError("a state that ends too early")
    return found


def _after(block: Any, position: int) -> Any:
    """A stream's cells from `position` on."""
    view = memoryview(block)
    (cells,) = _U32.unpack_from(view)
    about, at = block[_U32.size :][: cells * _CELL], _U32.size + cells * _CELL
    positions = np.frombuffer(about, "<i4")[:: _CELL // 4]
    first = int((positions < position).sum())
    if (positions[:first] >= position).any():
        raise ValueError("cells out of order")
    if first == cells:
        return np.zeros(_U32.size, np.uint8)
    transposed, layers = _U32.unpack_from(view, at)[0], _U32.unpack_from(view, at + _U32.size)[0]
    if transposed:
        raise ValueError("values that are transposed cannot be cut")
    count = np.frombuffer(_U32.pack(cells - first), np.uint8)
    pieces = [count, about[first * _CELL :], block[at : at + 2 * _U32.size]]
    at += 2 * _U32.size
    for _ in range(2 * layers):  # keys, then values
        row = _row_bytes(view, at)
        pieces.append(block[at : at + _ROW.size])
        at += _ROW.size
        pieces.append(block[at + first * row : at + cells * row])
        at += cells * row
    return np.concatenate(pieces)


def _end(view: memoryview, at: int) -> int:
    """Where the stream's cells that begin at `at` end."""
    (cells,) = _U32.unpack_from(view, at)
    at += _U32.size
    if not cells:
        return at
    at += cells * _CELL
    (transposed,) = _U32.unpack_from(view, at)
    (layers,) = _U32.unpack_from(view, at + _U32.size)
    at += 2 * _U32.size
    for _ in range(layers):  # keys
        at += _ROW.size + cells * _row_bytes(view, at)
    for _ in range(layers):  # values
        if transposed:
            _, element, width = _ELEMENT.unpack_from(view, at)
            at += _ELEMENT.size + cells * element * width
        else:
            at += _ROW.size + cells * _row_bytes(view, at)
    return at


def _row_bytes(view: memoryview, at: int) -> int:
    return int(_ROW.unpack_from(view, at)[1])
