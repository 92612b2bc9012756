"""Which files of a hub repository make the model that was asked for."""

from __future__ import annotations

import pytest

from uml.protocol.errors import NotFound
from uml.supervisor.pull.hub import choose


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("Q8_0", ["m-Q8_0.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("m-F16-00001-of-00002.gguf", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
        ("mmproj-m-F16.gguf", ["mmproj-m-F16.gguf"]),
        ("f16", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
    ],
)
def test_hub_choice_is_by_quantisation_or_name(wanted: str, chosen: list[str]) -> None:
    listed = [
        "README.md",
        "m-F16-00001-of-00002.gguf",
        "m-F16-00002-of-00002.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "mmproj-m-F16.gguf",
    ]
    assert choose("o/r", listed, wanted) == chosen


def test_hub_choice_names_what_there_is() -> None:
    with pytest.raises(NotFound, match="q4-0"):
        choose("o/r", ["m-Q4_0.gguf"], "Q9")
    with pytest.raises(NotFound, match="no GGUF"):
        choose("o/r", ["model.safetensors"], "")
