"""Frames: any split in, the same maps out; anything else is a ProtocolError and no memory."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol import frames
from uml.protocol.errors import ProtocolError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
maps = st.dictionaries(st.text(max_size=8), values, max_size=6)


@given(st.lists(maps, max_size=5), st.data())
def test_any_split_gives_the_same_maps(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(frames.encode(m) for m in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder, got = frames.Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == sent and decoder.pending == 0


@given(maps, st.data())
def test_truncated_frame_waits_and_shows_as_pending(
    message: dict[str, Any], data: st.DataObject
) -> None:
    stream = frames.encode(message)
    cut = data.draw(st.integers(1, len(stream) - 1))
    decoder = frames.Decoder()
    assert decoder.feed(stream[:cut]) == [] and decoder.pending == cut


@given(st.binary(max_size=200))
def test_garbage_gives_maps_or_a_protocol_error_and_stays_broken(garbage: bytes) -> None:
    decoder = frames.Decoder(limit=64)
    try:
        assert all(isinstance(m, dict) for m in decoder.feed(garbage))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            decoder.feed(frames.encode({}))


def test_oversized_frame_is_refused_before_it_is_buffered() -> None:
    decoder = frames.Decoder()
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="over the limit"):
        decoder.feed(struct.pack(">I", frames.MAX_FRAME_BYTES + 1) + b"x" * 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 and decoder.pending == 0


def test_oversized_message_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        frames.encode({"data": b"x" * (frames.MAX_FRAME_BYTES + 1)})


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**65, "\ud800"])
def test_what_cannot_be_packed_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot encode"):
        frames.encode({"v": value})


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", msgpack.packb([1]), msgpack.packb(7), msgpack.packb({1: 2}), b"\x81\xa1a"],
)
def test_body_that_is_no_map_of_strings_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.Decoder().feed(struct.pack(">I", len(body)) + body)


def test_lengths_inside_a_body_that_lie_cost_no_memory() -> None:
    body = b"\x81\xa1k\xdd\xff\xff\xff\xff"  # an array of 4 billion
    with pytest.raises(ProtocolError):
        frames.Decoder().feed(struct.pack(">I", len(body)) + body)


def test_body_nested_without_end_is_refused() -> None:
    body = b"\x81\xa1k" + b"\x91" * 100_000 + b"\x90"
    with pytest.raises(ProtocolError):
        frames.Decoder().feed(struct.pack(">I", len(body)) + body)
