"""A model with every number decided: what it takes, where, and why so. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.models import BackendSpec, MemoryEstimate, ModelFacts
from uml.supervisor.admission import size
from uml.supervisor.budget import Bytes, DeviceMemory
from uml.supervisor.optimize import Rank
from uml.supervisor.placement import Demand, Placement


@dataclass(frozen=True)
class Sized:
    """A model with every number decided. options: with its place. estimate: bytes per device by
    arithmetic, without what is parked; learned: what it took before, run like this; bytes: what to
    lease. rank: how well that runs; why: what of it is not the default, for want of memory."""

    spec: BackendSpec
    options: dict[str, Any]
    guess: MemoryEstimate
    placed: Placement
    estimate: Bytes
    learned: Bytes | None
    bytes: Bytes
    rank: Rank = Rank.WHOLE
    why: str = ""

    @property
    def arithmetic(self) -> str:
        words = [self.guess.arithmetic]
        if self.learned:
            took = " and ".join(f"{size(n)} of {d}" for d, n in self.learned.items() if n)
            words.append(f"it took {took} before")
        if self.why:
            words.append(f"with {self.why}")
        return "; ".join(words)

    @property
    def error(self) -> float | None:
        """How far the arithmetic is above (below: negative) what was measured, as a share of it."""
        measured = sum((self.learned or {}).values())
        return sum(self.estimate.values()) / measured - 1 if measured else None

    def to_map(self) -> dict[str, Any]:
        """For `show`."""
        guess = self.guess
        return {
            "options": self.options,
            "place": self.placed.reason,
            "chosen": self.why,
            "fits": self.rank is not Rank.NOWHERE,
            "estimate": {
                "weights_bytes": guess.weights_bytes,
                "kv_bytes": guess.kv_bytes,
                "compute_bytes": guess.compute_bytes,
                "process_bytes": guess.process_bytes,
                "total_bytes": sum(self.estimate.values()),
                "parked_bytes": guess.parked_bytes,
                "bytes": self.estimate,
            },
            "footprint": self.learned,
            "error": self.error,
            "lease": self.bytes,
        }


def demand_of(facts: ModelFacts, guess: MemoryEstimate, spec: BackendSpec) -> Demand:
    tail = min(facts.embedding_bytes, guess.weights_bytes) if facts.block_count else 0
    return Demand(
        layers_bytes=guess.weights_bytes - tail + guess.kv_bytes,
        tail_bytes=tail,
        compute_bytes=guess.compute_bytes,
        context_bytes=spec.context_bytes,
        process_bytes=guess.process_bytes + guess.parked_bytes,
        layers=facts.block_count,
        heads=facts.head_count,
    )


def all_on_gpu(placed: Placement) -> bool:
    return bool(placed.devices) and placed.layers is None


def chosen(wanted: Any, devices: Mapping[str, DeviceMemory]) -> list[DeviceMemory]:
    """The devices that may be used: all, or those asked for ("cuda0,cuda1", "ram").

    Raises: BadRequest, naming those that are here.
    """
    if wanted is None:
        return list(devices.values())
    names = ["ram" if n.strip() == "cpu" else n.strip() for n in str(wanted).split(",")]
    unknown = [name for name in names if name not in devices]
    if unknown:
        raise BadRequest(f"device {unknown[0]!r} is not here; there are {', '.join(devices)}")
    return [devices[name] for name in names]


def with_place(options: Mapping[str, Any], placed: Placement) -> dict[str, Any]:
    """options: with where the layers go, in the words of the workers."""
    layers = -1 if placed.layers is None else placed.layers
    told = {
        **options,
        "device": placed.device,
        "devices": list(placed.devices),
        "n_gpu_layers": layers if placed.devices else 0,
    }
    return told | ({"tensor_split": list(placed.shares)} if len(placed.devices) > 1 else {})
