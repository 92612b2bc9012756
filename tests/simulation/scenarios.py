"""What is simulated: models, devices, and who asks for what when."""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from tests.simulation.machine import Arrival, Model, Source

GB = 10**9


@dataclass(frozen=True)
class Scenario:
    """says: in a few words, for the table. source: makes the same requests anew every time. until:
    seconds, for clients that never stop. queue: requests that may wait."""

    name: str
    says: str
    models: Sequence[Model]
    devices: Sequence[int]
    source: Callable[[], Source]
    until: float | None = None
    queue: int = 512


class Stream(Source):
    """Requests that come whatever becomes of the others."""

    def __init__(self, arrivals: Iterator[Arrival]) -> None:
        self._arrivals = arrivals

    def first(self) -> Iterator[Arrival]:
        return self._arrivals


class Clients(Source):
    """Each asks again as soon as it was answered. choose: the model of a client's n-th request."""

    def __init__(
        self,
        count: int,
        choose: Callable[[int, int, random.Random], int],
        seconds: Callable[[int, random.Random], float],
        pause_s: float = 0.002,
    ) -> None:
        self._chance = [random.Random(i) for i in range(count)]
        self._asked = [0] * count
        self._choose, self._seconds, self._pause_s = choose, seconds, pause_s

    def first(self) -> Iterator[Arrival]:
        return iter([self._ask(client, 0.0) for client in range(len(self._asked))])

    def after(self, arrival: Arrival, now: float) -> Arrival:
        return self._ask(arrival.client, now + self._pause_s)

    def _ask(self, client: int, at: float) -> Arrival:
        chance = self._chance[client]
        model = self._choose(client, self._asked[client], chance)
        self._asked[client] += 1
        return Arrival(at, model, self._seconds(model, chance), client)


def _two(share: float | None) -> Callable[[], Source]:
    """8 clients that want A and B, by turns or A with this share, answers of 0.6 to 1 s."""

    def choose(client: int, number: int, chance: random.Random) -> int:
        if share is None:
            return (client + number) % 2
        return int(chance.random() >= share)

    return lambda: Clients(8, choose, lambda model, chance: chance.uniform(0.6, 1.0))


#: As measured with two small models on two cores.
_SMALL = tuple(Model(name, 8 * GB, load_s=0.5, slots=8) for name in "ab")


def turns(requests: int) -> Scenario:
    says = "8 clients by turns on A and B, room for one"
    return Scenario("turns", says, _SMALL, (10 * GB,), _two(None), requests / 5)


def skewed(requests: int) -> Scenario:
    says = "8 clients, nine times A for each B, room for one"
    return Scenario("skewed", says, _SMALL, (10 * GB,), _two(0.9), requests / 5)


def house(requests: int) -> Scenario:
    """One 24 GB GPU, 12 models of which three or four fit; people open a conversation with one of
    them now and then, ask some questions and think in between."""
    chance = random.Random(1)
    models = [
        Model(f"m{i}", int(chance.uniform(2, 14) * GB), chance.uniform(1, 8), slots=4)
        for i in range(12)
    ]

    def arrivals() -> Iterator[Arrival]:
        chance = random.Random(2)
        found, at = [], 0.0
        while len(found) < requests:
            at += chance.expovariate(1 / 60)
            model, when = min(int(chance.expovariate(0.35)), 11), at
            for _ in range(1 + int(chance.expovariate(1 / 6))):
                found.append(Arrival(when, model, 1 + chance.expovariate(1 / 5)))
                when += found[-1].seconds + chance.expovariate(1 / 15)
        return iter(sorted(found, key=lambda a: a.at)[:requests])

    says = "one GPU, 12 models, three or four fit; conversations"
    return Scenario("house", says, models, (24 * GB,), lambda: Stream(arrivals()))


def fleet(requests: int, devices: int = 300, count: int = 3000, rate: float = 80.0) -> Scenario:
    """Many devices and more models than fit, their popularity after Zipf, each request by itself.
    rate: requests a second."""
    chance = random.Random(3)
    sizes = [chance.choice((5, 8, 15, 28, 45)) * GB for _ in range(count)]
    models = [Model(f"m{i}", size, 1 + size / (2 * GB), slots=16) for i, size in enumerate(sizes)]
    weights = list(accumulate(1 / (i + 20) ** 1.1 for i in range(count)))

    def arrivals() -> Iterator[Arrival]:
        chance, at = random.Random(4), 0.0
        for _ in range(requests):
            at += chance.expovariate(rate)
            model = bisect_left(weights, chance.random() * weights[-1])
            yield Arrival(at, min(model, count - 1), 0.3 + chance.expovariate(1 / 3))

    says = f"{devices} devices of 80 GB, {count} models, Zipf"
    sizes_of = (80 * GB,) * devices
    return Scenario("fleet", says, models, sizes_of, lambda: Stream(arrivals()), queue=20_000)


def recorded(file: Path) -> Scenario:
    """What `record` wrote: a line with the machine, one per model, one per request."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    devices = next(line["devices"] for line in lines if "devices" in line)
    models = [Model(**line["load"]) for line in lines if "load" in line]
    index = {model.name: i for i, model in enumerate(models)}
    found = [
        Arrival(line["at"], index[line["model"]], line["seconds"]) for line in lines if "at" in line
    ]
    return Scenario(
        file.stem, f"recorded: {file.stem}", models, devices, lambda: Stream(iter(found))
    )


def faster(scenario: Scenario, factor: float) -> Scenario:
    """The same requests, closer together."""

    def source() -> Source:
        return Stream(replace(a, at=a.at / factor) for a in scenario.source().first())

    return replace(scenario, source=source)


GENERATED = {"turns": turns, "skewed": skewed, "house": house, "fleet": fleet}
