"""What every format says of a model's layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layers:
    """head_count_kv, windowed: per layer; 0 heads = no keys and values. The lengths are per head;
    value_length is 0 where values are a part of the keys (multi-head latent attention).
    state_bytes: of one sequence, in all recurrent layers."""

    head_count_kv: tuple[int, ...]
    windowed: tuple[bool, ...]
    window: int
    key_length: int
    value_length: int
    window_key_length: int
    window_value_length: int
    recurrent: bool
    state_bytes: int


def number(value: Any) -> int:
    """A metadata number; anything else, or a negative one, counts as absent. Of one number per
    layer the largest stands for all."""
    if isinstance(value, list):
        return max((number(v) for v in value if not isinstance(v, list)), default=0)
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 53 else 0
