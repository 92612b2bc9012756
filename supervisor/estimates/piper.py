"""Memory of Piper voices in onnxruntime: measured, since the library says nothing of it.

A voice of 63 MB takes 80 MB when it is loaded and 360 MB more while it speaks a sentence of the
greatest length that the worker gives it; sentences take turns, whatever the number of slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates.sums import spell, whole

_SLOTS = 4
#: Of the network's size.
_LOADED, _SPEAKING = 1.3, 5.8


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given, "n_ctx": 0, "slots": whole(given, "slots", _SLOTS)}


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    del options
    weights = int(facts.weights_bytes * _LOADED)
    compute = int(facts.weights_bytes * _SPEAKING)
    return MemoryEstimate(
        weights,
        0,
        compute,
        process_bytes,
        mapped=False,
        arithmetic=spell((weights, "weights"), (compute, "speaking"), (process_bytes, "process")),
    )
