"""Where a model is put: on one device, over several, partly in RAM, or in RAM. Pure.

Preferred, in this order: one device that has room now (the one it fills best); several that have
room together, as few as do; one, then several, that would have room if all of ours left (the one
where that is cheapest); as many layers as fit on accelerators and the rest in RAM; RAM. What fits
nowhere is put where it comes closest, so that the refusal can say what is missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from uml.supervisor.budget import Bytes, DeviceMemory


@dataclass(frozen=True)
class Demand:
    """What is to be put somewhere, in bytes.

    layers_bytes: weights and KV of all `layers` together, each an equal part (0 layers: one piece).
    tail_bytes: what stays with the last layer (the output matrix). compute_bytes: scratch, on every
    device that is used. context_bytes: of the driver, on every accelerator that is used.
    process_bytes: RAM in any case. heads: a tensor-parallel split has to divide them.
    """

    layers_bytes: int
    tail_bytes: int = 0
    compute_bytes: int = 0
    context_bytes: int = 0
    process_bytes: int = 0
    layers: int = 0
    heads: int = 0

    @property
    def each_bytes(self) -> int:
        return self.compute_bytes + self.context_bytes

    @property
    def ram_bytes(self) -> int:
        """With no accelerator at all."""
        return self.layers_bytes + self.tail_bytes + self.compute_bytes + self.process_bytes


@dataclass(frozen=True)
class Rules:
    """What a backend can do. kinds: of devices ("cpu" is RAM). split: "layers" = any number of them
    on each device, "tensor" = equal parts on 2, 4, 8 ... devices of a kind, "" = one device alone.
    offload: some layers may stay in RAM."""

    kinds: tuple[str, ...]
    split: str = ""
    offload: bool = False


@dataclass(frozen=True)
class Placement:
    """bytes: need per device. devices: the accelerators, () = RAM; shares: how many layers on each,
    the tail counted as one on the last (equal parts of 1 for a tensor split). layers: how many on
    accelerators, the tail included; None = all. reason: for people."""

    bytes: Bytes
    devices: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    layers: int | None = None
    reason: str = ""

    @property
    def device(self) -> str:
        return self.devices[0] if self.devices else "ram"


Limits = Mapping[str, int]
#: How dear it is to make room for so many bytes on a device, by sending others away.
Price = Callable[[str, int], tuple[float, ...]]


def place(
    demand: Demand,
    devices: Iterable[DeviceMemory],
    rules: Rules,
    caps: Limits,
    room: Limits | None = None,
    price: Price | None = None,
) -> Placement | None:
    """Where `demand` goes; None when the backend runs on nothing that is here.

    devices: those that may be used. caps: bytes usable per device if nothing of ours were loaded.
    room: bytes that can be had without sending a model away, by default what is free. price: of
    room for one that is full, by default the same everywhere.
    """
    known = list(devices)
    able = [d for d in known if d.kind in rules.kinds]
    free = {d.name: d.free_bytes for d in known} if room is None else room
    now = {name: min(count, caps.get(name, 0)) for name, count in free.items()}
    for limits, when, dear in ((now, "", None), (caps, " once others have left", price)):
        usable = _usable(demand, able, limits)
        found = _one(demand, able, usable, dear) or _several(demand, able, usable, rules.split)
        if found:
            return _complete(demand, found, able, when)
    if rules.offload and (found := _partly(demand, able, caps, rules.split)):
        return found
    if "cpu" in rules.kinds:
        return Placement({"ram": demand.ram_bytes}, reason=_why_ram(demand, able, caps))
    if not able:
        return None
    closest = max(able, key=lambda d: caps.get(d.name, 0))
    found = Placement({closest.name: _whole(demand)}, (closest.name,), (1,))
    return _complete(demand, found, able, " and does not fit anywhere")


def place_layers(
    demand: Demand, count: int, devices: Iterable[DeviceMemory], rules: Rules, caps: Limits
) -> Placement | None:
    """Where `demand` goes when somebody says how many layers, the tail counted as one more, the
    accelerators get; as many as that, whether they fit or not."""
    able = [d for d in devices if d.kind in rules.kinds]
    if count <= 0 or not able:
        return Placement({"ram": demand.ram_bytes}, layers=0, reason="all layers in RAM, as asked")
    if count > demand.layers:
        return place(demand, able, Rules(tuple(d.kind for d in able), rules.split), caps)
    chosen = _group(able, caps, rules.split)
    most = [max(1, caps.get(d.name, 0)) for d in chosen]
    return _on_and_off(demand, chosen, divide(count - 1, most))


def _whole(demand: Demand) -> int:
    return demand.layers_bytes + demand.tail_bytes + demand.each_bytes


def _usable(demand: Demand, able: Sequence[DeviceMemory], limits: Limits) -> dict[str, int]:
    """Bytes of each device; where they are RAM's, no more than RAM has."""
    ram = limits.get("ram", 0) - demand.process_bytes
    found = {d.name: limits.get(d.name, 0) for d in able}
    return found | {d.name: min(found[d.name], ram) for d in able if d.unified}


def _one(
    demand: Demand, able: Sequence[DeviceMemory], usable: Limits, price: Price | None
) -> Placement | None:
    """The cheapest device, of those the one with the least to spare."""
    need = _whole(demand)
    fitting = [d.name for d in able if usable[d.name] >= need]
    if not fitting:
        return None
    name = min(fitting, key=lambda d: (price(d, need) if price else (), usable[d], d))
    return Placement({name: need}, (name,), (1,), reason=f"on {name}")


def _several(
    demand: Demand, able: Sequence[DeviceMemory], usable: Limits, split: str
) -> Placement | None:
    """As few devices of one kind as do."""
    for _, group in itertools.groupby(sorted(able, key=lambda d: d.kind), lambda d: d.kind):
        largest = sorted(group, key=lambda d: (-usable[d.name], d.name))
        for count in range(2, len(largest) + 1):
            # The largest last: it takes the tail, too.
            chosen = [d.name for d in reversed(largest[:count])]
            if split == "layers" and (found := _by_layers(demand, chosen, usable)):
                return found
            if split == "tensor" and (found := _by_tensors(demand, chosen, usable)):
                return found
    return None


def _by_layers(demand: Demand, chosen: Sequence[str], usable: Limits) -> Placement | None:
    """Layers on each device in proportion to its bytes."""
    if not demand.layers:
        return None
    each = demand.layers_bytes / demand.layers
    tails = {chosen[-1]: demand.tail_bytes}
    rooms = [usable[d] - demand.each_bytes - tails.get(d, 0) for d in chosen]
    most = [max(0, int(r // each)) if each else demand.layers for r in rooms]
    if sum(most) < demand.layers or not all(most):
        return None
    shares = divide(demand.layers, most)
    if not all(shares):
        return None
    held = {
        d: int(each * n) + demand.each_bytes + tails.get(d, 0)
        for d, n in zip(chosen, shares, strict=True)
    }
    why = f"layers over {', '.join(chosen)}"
    return Placement(held, tuple(chosen), (*shares[:-1], shares[-1] + 1), reason=why)


def divide(count: int, most: Sequence[int]) -> tuple[int, ...]:
    """`count` things in proportion to `most`, of which no share is larger than its own."""
    total = sum(most)
    shares = [count * m // total for m in most]
    by_rest = sorted(range(len(most)), key=lambda i: (-(count * most[i] % total), i))
    for i in by_rest[: count - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def _by_tensors(demand: Demand, chosen: Sequence[str], usable: Limits) -> Placement | None:
    """Every layer in equal parts: on a power of two of devices that divides the heads."""
    count = len(chosen)
    if count & (count - 1) or demand.heads % count:
        return None
    need = -(-(demand.layers_bytes + demand.tail_bytes) // count) + demand.each_bytes
    if any(usable[d] < need for d in chosen):
        return None
    held = dict.fromkeys(chosen, need)
    return Placement(held, tuple(chosen), (1,) * count, reason=f"in {count} equal parts")


def _partly(
    demand: Demand, able: Sequence[DeviceMemory], caps: Limits, split: str
) -> Placement | None:
    """As many layers as fit on accelerators, the rest in RAM."""
    chosen = _group([d for d in able if not d.unified], caps, split)
    if not demand.layers or not chosen:
        return None
    each = demand.layers_bytes / demand.layers
    rooms = [caps.get(d.name, 0) - demand.each_bytes for d in chosen]
    rooms[-1] -= demand.tail_bytes
    if rooms[-1] < 0:  # the tail alone is more than the largest has
        return None
    most = [max(0, int(room // each)) if each else 0 for room in rooms]
    count = min(demand.layers - 1, sum(most))
    if count < 1:
        return None
    found = _on_and_off(demand, chosen, divide(count, most))
    return found if found.bytes["ram"] <= caps.get("ram", 0) else None


def _group(able: Sequence[DeviceMemory], caps: Limits, split: str) -> list[DeviceMemory]:
    """All devices of the kind that has most, the largest last; that one alone without layers to
    divide."""
    ordered = sorted(able, key=lambda d: (caps.get(d.name, 0), d.name))
    if split != "layers":
        return ordered[-1:]
    kinds = {d.kind: 0 for d in ordered}
    for d in ordered:
        kinds[d.kind] += caps.get(d.name, 0)
    return [d for d in ordered if d.kind == max(kinds, key=kinds.__getitem__)]


def _on_and_off(demand: Demand, chosen: Sequence[DeviceMemory], shares: Sequence[int]) -> Placement:
    """shares: layers on each device; the tail goes with the last, what is left over to RAM."""
    each = demand.layers_bytes / demand.layers if demand.layers else 0
    used = [(d, n) for d, n in zip(chosen, shares, strict=True) if n or d is chosen[-1]]
    held = {d.name: int(each * n) + demand.each_bytes for d, n in used}
    held[used[-1][0].name] += demand.tail_bytes
    on = sum(shares)
    rest = int(each * (demand.layers - on)) + demand.compute_bytes + demand.process_bytes
    names = tuple(held)
    return Placement(
        held | {"ram": rest + sum(held[d.name] for d, _ in used if d.unified)},
        names,
        tuple(n + (d is used[-1][0]) for d, n in used),
        on + 1,
        f"{on} of {demand.layers} layers on {', '.join(names)}, the rest in RAM",
    )


def _complete(
    demand: Demand, found: Placement, able: Sequence[DeviceMemory], when: str
) -> Placement:
    """With what it takes of RAM besides."""
    unified = {d.name for d in able if d.unified}
    shared = sum(count for name, count in found.bytes.items() if name in unified)
    ram = demand.process_bytes + shared
    held = found.bytes | ({"ram": ram} if ram else {})
    return Placement(held, found.devices, found.shares, None, found.reason + when)


def _why_ram(demand: Demand, able: Sequence[DeviceMemory], caps: Limits) -> str:
    if not able:
        return "in RAM"
    largest = max(caps.get(d.name, 0) for d in able)
    return f"in RAM: it needs {_whole(demand) / 1e9:.1f} GB, no device has more than " + (
        f"{largest / 1e9:.1f} GB"
    )
