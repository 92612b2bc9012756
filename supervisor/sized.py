"""A model with every number decided: what it takes, where, and why so. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        return {
            "options": self.options,
            "place": self.placed.reason,
            "chosen": self.why,
            "fits": self.rank is not Rank.NOWHERE,
            "estimate": parts_of(self.guess, self.estimate)
            | {"projector_loaded": loads_projector(self.spec)},
            "footprint": self.learned,
            "error": self.error,
            "lease": self.bytes,
        }


def parts_of(guess: MemoryEstimate, where: Bytes) -> dict[str, Any]:
    """An estimate for `show`. where: all of it, per device."""
    return {
        "weights_bytes": guess.weights_bytes,
        "kv_bytes": guess.kv_bytes,
        "compute_bytes": guess.compute_bytes,
        "process_bytes": guess.process_bytes,
        "draft_bytes": guess.draft_bytes,
        "total_bytes": sum(where.values()) or guess.total_bytes,
        "parked_bytes": guess.parked_bytes,
        "projector_bytes": guess.projector_bytes,
        "encoding_bytes": guess.encoding_bytes,
        "bytes": where,
    }


def loads_projector(spec: BackendSpec) -> bool:
    """Whether a backend has the projector of a multimodal model in memory, too."""
    return "describe" in spec.tasks


def demand_of(facts: ModelFacts, guess: MemoryEstimate, spec: BackendSpec) -> Demand:
    tail = min(facts.embedding_bytes, guess.weights_bytes) if facts.block_count else 0
    # In one piece, on one device.
    seeing = guess.projector_bytes + guess.encoding_bytes if loads_projector(spec) else 0
    return Demand(
        layers_bytes=guess.weights_bytes - tail + guess.kv_bytes,
        tail_bytes=tail + seeing,
        # A draft is not divided: it lies where the scratch does.
        compute_bytes=guess.compute_bytes + guess.draft_bytes,
        context_bytes=spec.context_bytes,
        process_bytes=guess.process_bytes + guess.parked_bytes,
        layers=facts.block_count,
        heads=facts.head_count,
    )


def share_asked(spec: BackendSpec, options: Mapping[str, Any]) -> float | None:
    """The share of each accelerator that the library is to fill, where somebody says one.

    Raises: BadRequest.
    """
    share = options.get(spec.share_option) if spec.share_option else None
    if share is None:
        return None
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise BadRequest(f"{spec.share_option} is {share!r}; it has to be above 0 and at most 1")
    return float(share)


def within_share(
    limits: Mapping[str, int], share: float, devices: Mapping[str, DeviceMemory]
) -> dict[str, int]:
    """limits: bytes per device; of an accelerator the share, or nothing where it has not that."""
    found = dict(limits)
    for name, device in devices.items():
        taken = int(share * device.total_bytes)
        if device.kind != "ram":
            found[name] = taken if taken <= limits.get(name, 0) else 0
    return found


def filling(
    guess: MemoryEstimate,
    placed: Placement,
    share: float,
    spec: BackendSpec,
    devices: Mapping[str, DeviceMemory],
) -> tuple[MemoryEstimate, Placement]:
    """For a library that takes a share of each accelerator whatever the model needs, and what is
    left of it for keys and values.

    Raises: BadRequest, when the model needs more.
    """
    taken = {d: int(share * devices[d].total_bytes) for d in placed.devices}
    for name, count in taken.items():
        if placed.bytes[name] > count:
            raise BadRequest(
                f"{spec.share_option} {share:g} of {name} is {size(count)}, and the model needs "
                f"{size(placed.bytes[name])} there: say more, or leave it out"
            )
    rest = sum(count - placed.bytes[name] for name, count in taken.items())
    words = f"{guess.arithmetic} + {rest / 1e6:.0f} MB more KV cache, to fill {share:g} of " + (
        " and ".join(taken)
    )
    fuller = replace(guess, kv_bytes=guess.kv_bytes + rest, arithmetic=words)
    return fuller, replace(placed, bytes=placed.bytes | taken)


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
