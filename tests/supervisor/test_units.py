from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.supervisor.units import format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (512, 512),
        ("512", 512),
        ("8GB", 8_000_000_000),
        ("8 gb", 8_000_000_000),
        ("512MiB", 512 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("1.1GB", 1_100_000_000),
        ("2T", 2_000_000_000_000),
        ("10B", 10),
    ],
)
def test_size_reads(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1", -1, "8XB", "8 GB each", True, None, 1.5, "1iB"])
def test_size_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="8GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (300, 300.0),
        (2.5, 2.5),
        ("300", 300.0),
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("2d", 172800.0),
        (0, 0.0),
        ("0", 0.0),
        (-1, -1.0),
        ("-1", -1.0),
        ("-5m", -1.0),
    ],
)
def test_duration_reads(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "m", "10x", "10m!", True, None, [], "1e9", float("nan"), float("inf"), "9" * 400],
)
def test_duration_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="10m"):
        parse_duration(text)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_parsers_raise_nothing_but_valueerror(value: object) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(value) >= -1
        except ValueError:
            continue


@given(st.integers(0, 2**60))
def test_formatted_size_reads_back_nearly(size_bytes: int) -> None:
    back = parse_size(format_size(size_bytes))
    assert abs(back - size_bytes) <= max(1, size_bytes * 0.06)
