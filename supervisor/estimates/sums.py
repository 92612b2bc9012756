"""What the formats' arithmetic shares: checked numbers, and sums that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.errors import BadRequest


def whole(given: Mapping[str, Any], key: str, default: int, low: int = 1) -> int:
    """The option `key`, or `default`. Raises: BadRequest unless a whole number from `low`."""
    value = given.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << 31:
        raise BadRequest(f"{key} is {value!r}; it has to be a whole number from {low}")
    return value


def spell(*terms: tuple[int, str]) -> str:
    """(bytes, what for) ... -> "97 MB weights + 67 MB process"; what is nothing is left out."""
    return " + ".join(f"{count / 1e6:.0f} MB {what}" for count, what in terms if count)
