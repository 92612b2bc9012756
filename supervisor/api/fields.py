"""Typed values out of a JSON object. Every complaint is a 400 that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from uml.protocol.errors import BadRequest

_KINDS = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}


def kind(value: Any) -> str:
    """What JSON calls the type of `value`."""
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return _KINDS.get(type(value), type(value).__name__)


def wrong(param: str, wanted: str, value: Any) -> BadRequest:
    """The error for a value that is not what is accepted."""
    plain = isinstance(value, (bool, int, float, str)) and len(str(value)) <= 40
    shown = f"{value!r}" if plain and value != "" else kind(value) if value != "" else "empty"
    return BadRequest(f"'{param}' must be {wanted}, not {shown}", param=param)


class Fields:
    """Reads one JSON object. where: the object's own path, a prefix of every `param`.

    A field that is absent or null reads as None. Several names are aliases, the first one given
    counts.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self._data, self._where = data, where

    def path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def raw(self, *names: str) -> tuple[str, Any]:
        """(path, value) of the first name that is given."""
        for name in names:
            value = self._data.get(name)
            if value is not None:
                return self.path(name), value
        return self.path(names[0]), None

    def whole(self, *names: str, low: int, high: int) -> int | None:
        param, value = self.raw(*names)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
            value = int(value)  # 1e3 and 1.0 are whole numbers in JSON
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(param, f"a whole number from {low} to {high}", value)
        return value

    def number(self, *names: str, low: float, high: float) -> float | None:
        param, value = self.raw(*names)
        if value is None:
            return None
        if not _is_number(value) or not low <= value <= high:
            raise wrong(param, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, *names: str) -> bool | None:
        param, value = self.raw(*names)
        if value is not None and not isinstance(value, bool):
            raise wrong(param, "true or false", value)
        return value

    def text(self, *names: str, limit: int | None = None) -> str | None:
        param, value = self.raw(*names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong(param, "a string", value)
        if limit is not None and len(value) > limit:
            raise BadRequest(f"'{param}' is longer than {limit} characters", param=param)
        return value

    def table(self, *names: str) -> dict[str, Any] | None:
        param, value = self.raw(*names)
        if value is not None and not isinstance(value, dict):
            raise wrong(param, "an object", value)
        return value

    def array(self, *names: str) -> list[Any] | None:
        param, value = self.raw(*names)
        if value is not None and not isinstance(value, list):
            raise wrong(param, "a list", value)
        return value

    def choice(self, name: str, *words: str) -> str | None:
        param, value = self.raw(name)
        if value is not None and value not in words:
            raise wrong(param, "one of " + ", ".join(words), value)
        return None if value is None else str(value)

    def required(self, *names: str) -> Any:
        """The value, which must be given. Raises: BadRequest."""
        param, value = self.raw(*names)
        if value is None:
            raise BadRequest(f"'{param}' is missing", param=param)
        return value

    def required_text(self, *names: str) -> str:
        self.required(*names)
        value = self.text(*names)
        if not value:
            raise wrong(self.raw(*names)[0], "a text that is not empty", "")
        return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def is_tokens(value: Any) -> bool:
    """Whether `value` is a list of token ids."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(t) is int and 0 <= t < 1 << 31 for t in value)
    )
