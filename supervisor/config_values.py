"""How values of the configuration are read: a raw one in, from the file or the environment, the
typed one out; ValueError says what is accepted. Pure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uml.supervisor.units import DURATION_FORMS, SIZE_FORMS, parse_duration, parse_size

Reader = Callable[[Any], Any]


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def secret(value: Any) -> str | None:
    return text(value) or None


def choice(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(f'"{w}"' for w in words))
        return str(value)

    return read


def whole(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return read


def flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def duration(value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError(DURATION_FORMS) from None


def limit(value: Any) -> float:
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError('a duration above zero, like "30s"')
    return seconds


def texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # from the environment
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of texts")
    return tuple(value)


def folders(value: Any) -> tuple[Path, ...]:
    names = tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value
    try:
        return tuple(Path(v).expanduser().absolute() for v in texts(list(names)))
    except (TypeError, ValueError):
        raise ValueError("a list of folders") from None


def folder(value: Any) -> Path:
    if not text(value):
        raise ValueError("a folder")
    return Path(value).expanduser().absolute()


def size(value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError:
        raise ValueError(SIZE_FORMS) from None


def sizes(value: Any) -> dict[str, int]:
    if isinstance(value, str):  # from the environment: "ram=8GB,cuda:0=20GB"
        value = dict(part.split("=", 1) for part in texts(value) if "=" in part) or None
    if not isinstance(value, dict):
        raise ValueError('a table of devices and sizes, like {ram = "8GB"}')
    try:
        return {str(k): parse_size(v) for k, v in value.items()}
    except ValueError:
        raise ValueError(f"for each device {SIZE_FORMS}") from None


def names(value: Any) -> dict[str, str]:
    if isinstance(value, str):  # from the environment: "alloy=joe,nova=amy"
        value = dict(part.split("=", 1) for part in texts(value) if "=" in part) or None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError('a table of names, like {alloy = "joe"}')
    return {str(k).lower(): v for k, v in value.items()}


def lists(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
        raise ValueError('a table of lists, like {voice = ["one", "two"]}')
    return {str(k): texts(v) for k, v in value.items()}


def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value
