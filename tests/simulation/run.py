"""One scenario under one policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.machine import Machine, Policy, Result
from tests.simulation.rivals import Fifo, Lru
from tests.simulation.scenarios import Scenario
from uml.supervisor.budget import Budget
from uml.supervisor.scheduler import Scheduler
from uml.supervisor.states import Limits

POLICIES: dict[str, Callable[[Budget, Limits], Policy]] = {
    "uml": Scheduler,
    "fifo": Fifo,
    "lru": Lru,
}


@dataclass(frozen=True)
class Measured:
    """cpu_s: that the simulation took."""

    scenario: Scenario
    policy: str
    result: Result
    cpu_s: float


def run(scenario: Scenario, policy: str, *, max_wait_s: float = 8.0) -> Measured:
    """A stranger to chance: the same scenario gives the same result."""
    made = POLICIES[policy](Budget(), Limits(queue=scenario.queue, max_wait_s=max_wait_s))
    begin = time.process_time()
    machine = Machine(made, scenario.models, scenario.devices)
    result = machine.run(scenario.source(), scenario.until)
    return Measured(scenario, policy, result, time.process_time() - begin)
