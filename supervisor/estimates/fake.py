"""Models of the fake backend say themselves what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import MemoryEstimate, ModelFacts


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"n_ctx": facts.context_length, "slots": 4, **given}


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    ram, weights = int(options.get("ram_bytes", 0)), facts.weights_bytes
    on_device = bool(options.get("device"))
    return MemoryEstimate(
        weights_bytes=weights if on_device else weights + ram,
        kv_bytes=0,
        compute_bytes=0,
        process_bytes=process_bytes + (ram if on_device else 0),
        arithmetic=f"{weights} bytes declared",
    )
