"""Sizes and durations as people write them. Pure."""

from __future__ import annotations

import math
import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

#: What the parsers accept, for error messages.
SIZE_FORMS = 'bytes as an integer, or a text like "8GB", "512MiB"'
DURATION_FORMS = 'seconds as a number, a text like "30s", "10m", "1h30m", or -1 for no limit'


def parse_size(value: object) -> int:
    """Bytes: 512, "512", "8GB" (powers of 1000), "512MiB" (powers of 1024).

    Raises: ValueError saying what is accepted.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"a size is {SIZE_FORMS}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2].lower()])


def parse_duration(value: object) -> float:
    """Seconds: 300, 2.5, "300", "30s", "10m", "1h30m". Negative, as a number or as "-1", "-1m",
    means no limit and comes back as -1.0 (Ollama's meaning of `keep_alive`).

    Raises: ValueError saying what is accepted.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and value.strip():
        seconds = _read_duration(value.strip().lower())
    else:
        raise ValueError(f"a duration is {DURATION_FORMS}")
    if not math.isfinite(seconds):
        raise ValueError(f"a duration is {DURATION_FORMS}")
    return -1.0 if seconds < 0 else seconds


def _read_duration(text: str) -> float:
    body = text.lstrip("-+")
    sign = -1.0 if text.startswith("-") else 1.0
    if re.fullmatch(r"\d+(\.\d+)?", body):
        return sign * float(body)
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", body):
        raise ValueError(f"a duration is {DURATION_FORMS}")
    return sign * sum(float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(body))


def format_size(size_bytes: int) -> str:
    """1536 -> "1.5 KiB"."""
    amount, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{int(amount)} B" if unit == "B" else f"{amount:.1f} {unit}"
