"""Bodies of any bytes: an object, or a bad request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol.errors import BadRequest
from uml.supervisor.api.body import MAX_DEPTH, parse_object


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"[1]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1',
        b"\xff\xfe{}",
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
def test_body_that_is_no_sane_object_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_object(raw)


def test_body_nested_as_deep_as_allowed_is_read() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert parse_object(json.dumps({"a": value}).encode()) == {"a": value}
    wide = {"a": [[i] for i in range(1000)], "b": "[" * 1000}
    assert parse_object(json.dumps(wide).encode()) == wide


def test_body_with_whole_surrogate_pairs_is_read() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@given(st.binary(max_size=200))
def test_body_of_any_bytes_is_an_object_or_a_bad_request(raw: bytes) -> None:
    try:
        assert isinstance(parse_object(raw), dict)
    except BadRequest:
        pass
