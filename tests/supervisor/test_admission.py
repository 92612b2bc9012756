"""What room costs: a model that may go to several devices goes where it disturbs least."""

from __future__ import annotations

from tests.supervisor.world import MB, World, need
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.placement import Demand, Rules, place
from uml.supervisor.states import Need

GPUS = {"g0": 100 * MB, "g1": 100 * MB, "g2": 100 * MB}


def on(device: str, model: str, size: int = 80, **extra: object) -> Need:
    return need(model, {"ram": 10 * MB, device: size * MB}, **extra)


def full() -> World:
    """Three devices, a model on each, used in the order c, a, b and idle now."""
    world = World(total=10_000 * MB, others=GPUS)
    for request, (device, model) in enumerate(zip(GPUS, "abc", strict=True)):
        world.bring(on(device, model), request)
    for request in (2, 0, 1):
        world.wait(1)
        world.finish(request)
    world.wait(1)
    return world


def chosen(world: World, size: int = 50) -> str:
    devices = [DeviceMemory(name, "cuda", total, 0) for name, total in GPUS.items()]
    caps = {**GPUS, "ram": 10_000 * MB}
    room = {name: world.scheduler.room(name) for name in caps}
    demand = Demand(layers_bytes=size * MB)
    placed = place(demand, devices, Rules(("cuda",)), caps, room, world.scheduler.price)
    assert placed is not None
    return placed.device


def test_newcomer_goes_where_the_model_was_unused_for_longest() -> None:
    assert chosen(full()) == "g2"
    assert chosen(full(), size=15) == "g0", "where there is room nobody has to go"


def test_newcomer_does_not_wait_for_answers_where_another_device_is_idle() -> None:
    world = full()
    world.ask(10, on("g2", "c"))
    assert chosen(world) == "g0"
    world.ask(11, on("g0", "a"))
    assert chosen(world) == "g1"


def test_newcomers_spread_over_busy_devices_instead_of_waiting_all_for_the_first() -> None:
    world = full()
    for request, (device, model) in enumerate(zip(GPUS, "abc", strict=True), 10):
        world.ask(request, on(device, model))
    homes = []
    for request, model in enumerate("xyz", 20):
        homes.append(chosen(world))
        world.ask(request, on(homes[-1], model, 50))
    assert sorted(homes) == ["g0", "g1", "g2"]


def test_pinned_models_are_no_price_anybody_can_pay_and_claimed_bytes_no_room() -> None:
    world = World(total=10_000 * MB, others=GPUS, max_wait_s=0.0)
    world.bring(on("g0", "a", pinned=True), 1)
    world.finish(1)
    assert world.scheduler.price("g0", 50 * MB)[0] == 2.0
    world.bring(on("g1", "b", 60), 2)
    world.ask(3, on("g1", "c", 90))
    assert world.scheduler.room("g1") == 10 * MB, "30 of 40 free ones are kept for c"
