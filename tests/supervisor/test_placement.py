"""Where models go, on machines that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.supervisor.machine.machines import NAMES, machine
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.placement import Demand, Placement, Rules, divide, place, place_layers

GB = 1 << 30
MB = 1 << 20
LLAMA = Rules(("cpu", "cuda", "rocm", "metal"), "layers", offload=True)
VLLM = Rules(("cuda", "rocm"), "tensor")
CPU = Rules(("cpu",))


def model(gigabytes: float, layers: int = 32, heads: int = 32) -> Demand:
    """Weights and KV of so many GB, of which a twentieth is the output matrix."""
    size = int(gigabytes * GB)
    return Demand(
        layers_bytes=size - size // 20,
        tail_bytes=size // 20,
        compute_bytes=200 * MB,
        context_bytes=300 * MB,
        process_bytes=100 * MB,
        layers=layers,
        heads=heads,
    )


def put(
    demand: Demand, name: str, rules: Rules = LLAMA, room: dict[str, int] | None = None
) -> Placement:
    devices = machine(name)
    caps = {d.name: d.total_bytes for d in devices}
    found = place(demand, devices, rules, caps, room)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("machine_name", "gigabytes", "rules", "devices"),
    [
        # One device, the one with the least to spare.
        ("rtx4090", 8, LLAMA, "cuda0"),
        ("rtx4090+rtx3060", 8, LLAMA, "cuda1"),
        ("rtx4090+rtx3060", 14, LLAMA, "cuda0"),
        ("2x-rtx3090", 20, LLAMA, "cuda0"),
        ("4x-a10g", 8, LLAMA, "cuda2"),
        ("m2-max-64gb", 30, LLAMA, "metal0"),
        ("2x-rx7900xtx", 20, LLAMA, "rocm0"),
        # Several, as few as do, the largest last.
        ("2x-rtx3090", 40, LLAMA, "cuda0,cuda1"),
        ("rtx4090+rtx3060", 30, LLAMA, "cuda1,cuda0"),
        ("4x-l4", 40, LLAMA, "cuda1,cuda0"),
        ("4x-l4", 60, LLAMA, "cuda2,cuda1,cuda0"),
        ("8x-h100", 280, LLAMA, "cuda3,cuda2,cuda1,cuda0"),
        ("2x-rx7900xtx", 40, LLAMA, "rocm0,rocm1"),
        # Equal parts, on a power of two.
        ("4x-l4", 50, VLLM, "cuda3,cuda2,cuda1,cuda0"),
        ("8x-h100", 130, VLLM, "cuda1,cuda0"),
        ("8x-h100", 400, VLLM, ",".join(f"cuda{i}" for i in range(7, -1, -1))),
        ("8x-a100-40gb", 60, VLLM, "cuda1,cuda0"),
        # A card that others use is left alone where another has room.
        ("4x-a10g", 20, LLAMA, "cuda0"),
        ("4x-a10g", 60, LLAMA, "cuda3,cuda1,cuda0"),
        # Not everything fits: the rest in RAM.
        ("rtx3060", 20, LLAMA, "cuda0"),
        ("2x-rtx3090", 60, LLAMA, "cuda0,cuda1"),
        # No accelerator, or none that the backend can use.
        ("laptop-8gb", 4, LLAMA, ""),
        ("rtx4090", 4, CPU, ""),
        ("m1-16gb", 12, LLAMA, ""),
    ],
)
def test_place_on_machines_of_the_field(
    machine_name: str, gigabytes: float, rules: Rules, devices: str
) -> None:
    assert ",".join(put(model(gigabytes), machine_name, rules).devices) == devices


def test_place_waits_for_the_device_that_would_have_room_alone() -> None:
    # The game's memory is not ours, so caps alone decide what can come free.
    found = put(model(12), "rtx4060ti-game")
    assert found.devices == ("cuda0",) and found.layers is None
    assert "once others have left" in found.reason


def test_place_prefers_what_is_free_together_to_sending_a_model_away() -> None:
    free = {"ram": 40 * GB, "cuda0": 12 * GB, "cuda1": 14 * GB}
    assert put(model(20), "2x-rtx3090", room=free).devices == ("cuda0", "cuda1")
    full = free | {"cuda0": GB}
    assert put(model(20), "2x-rtx3090", room=full).devices == ("cuda0",), "after an eviction"


def test_split_gives_layers_in_proportion_to_what_is_free() -> None:
    found = put(model(30, layers=60), "rtx4090+rtx3060")
    assert found.devices == ("cuda1", "cuda0") and sum(found.shares) == 60 + 1
    small, large = found.shares
    assert large / small == pytest.approx(22.0 / 11.5, rel=0.1)
    assert found.bytes["ram"] == 100 * MB and found.layers is None


def test_partial_offload_counts_the_layers_that_fit_and_leaves_the_rest_to_ram() -> None:
    demand = model(20, layers=40)
    found = put(demand, "rtx3060")
    # 12 GB less 0.5 GB of scratch and driver and 1 GB of output matrix, at 0.475 GB a layer.
    assert found.layers == 22 + 1, "the output matrix counts as one more"
    assert found.bytes["cuda0"] <= 12 * GB
    rest = demand.layers_bytes * 18 // 40 + 300 * MB
    assert found.bytes["ram"] == pytest.approx(rest, abs=MB)
    assert "22 of 40 layers" in found.reason


def test_model_too_large_for_everything_goes_where_the_refusal_makes_sense() -> None:
    assert put(model(500), "rtx3060").bytes.keys() == {"ram"}
    alone = put(model(500), "rtx3060", VLLM)
    assert alone.devices == ("cuda0",) and "does not fit anywhere" in alone.reason


def test_backend_without_its_kind_of_device_goes_nowhere() -> None:
    devices = machine("laptop-8gb")
    assert place(model(1), devices, VLLM, {"ram": 8 * GB}) is None


def test_tensor_parallel_needs_heads_that_divide() -> None:
    assert put(model(50, heads=6), "4x-l4", VLLM).reason.endswith("does not fit anywhere")
    assert len(put(model(30, heads=6), "4x-l4", VLLM).devices) == 2


def test_unified_memory_is_counted_once_as_ram_and_once_as_the_gpus_share() -> None:
    found = put(model(30), "m2-max-64gb")
    assert found.bytes["metal0"] + 100 * MB == found.bytes["ram"]
    free = {"ram": 10 * GB, "metal0": 48 * GB}
    assert "once others" in put(model(30), "m2-max-64gb", room=free).reason


def test_layers_that_somebody_asked_for_are_what_he_gets() -> None:
    devices = machine("rtx4090")
    caps = {d.name: d.total_bytes for d in devices}
    none = place_layers(model(4), 0, devices, LLAMA, caps)
    some = place_layers(model(4), 11, devices, LLAMA, caps)
    every = place_layers(model(4), 99, devices, LLAMA, caps)
    assert none and none.devices == () and none.layers == 0
    assert some and some.layers == 11 and some.bytes["ram"] > 2 * GB
    assert every and every.layers is None and every.bytes["ram"] == 100 * MB


@given(
    name=st.sampled_from(NAMES),
    gigabytes=st.floats(0.1, 900),
    layers=st.integers(0, 120),
    rules=st.sampled_from([LLAMA, VLLM, CPU, replace(LLAMA, split="")]),
)
@example("8x-a100-40gb", 791.0, 20, LLAMA)
def test_placement_never_takes_more_than_a_device_has_and_loses_no_layer(
    name: str, gigabytes: float, layers: int, rules: Rules
) -> None:
    devices, demand = machine(name), model(gigabytes, layers)
    caps = {d.name: d.total_bytes for d in devices}
    found = place(demand, devices, rules, caps)
    if found is None:
        assert not any(d.kind in rules.kinds for d in devices) and "cpu" not in rules.kinds
        return
    assert len(found.shares) == len(found.devices) == len(set(found.devices))
    kinds = {d.name: d.kind for d in devices}
    assert len({kinds[d] for d in found.devices}) <= 1, "one runtime drives one kind"
    if found.devices and "not fit anywhere" not in found.reason:
        assert all(count <= caps[d] for d, count in found.bytes.items() if d != "ram")
        total = sum(b for d, b in found.bytes.items() if not _unified(devices, d))
        if not any(_unified(devices, d) for d in found.devices):
            assert total >= demand.layers_bytes + demand.tail_bytes - 64
    if rules.split == "layers" and len(found.devices) > 1:
        on = demand.layers + 1 if found.layers is None else found.layers
        assert sum(found.shares) == on and all(found.shares)


def _unified(devices: list[DeviceMemory], name: str) -> bool:
    return any(d.unified for d in devices if d.name == name)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.data())
def test_divide_gives_away_everything_and_nobody_too_much(
    most: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(most)))
    if not sum(most):
        return
    shares = divide(count, most)
    assert sum(shares) == count
    assert all(0 <= s <= m for s, m in zip(shares, most, strict=True))
