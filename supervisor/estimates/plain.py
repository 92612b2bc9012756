"""For formats without arithmetic of their own: the weights, and what the process takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates.sums import spell, whole


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **given,
        "n_ctx": whole(given, "n_ctx", facts.context_length, 0),
        "slots": whole(given, "slots", 1),
    }


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    del options
    arithmetic = spell((facts.weights_bytes, "weights"), (process_bytes, "process"))
    return MemoryEstimate(facts.weights_bytes, 0, 0, process_bytes, arithmetic=arithmetic)
