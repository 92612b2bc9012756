"""Records what a real supervisor is asked, so that it can be simulated again.

    python -m tests.simulation.record FILE serve --port 8484

Everything after FILE is a command line of `uml`. When it ends FILE has a line with the device, one
per model with its bytes and its load time as measured, and one per answered request: when it came,
for which model, how long its answer took from the grant on, and how long it waited for that (which
the simulation does not read, but may be compared with).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tests.mount  # noqa: F401 - before all of ours

# isort: split
from uml.supervisor import states
from uml.supervisor.cli import main
from uml.supervisor.scheduler import Scheduler


class Recorder(Scheduler):
    """The scheduler, which remembers."""

    made: Recorder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        Recorder.made = self
        self.asked: dict[int, tuple[float, str]] = {}
        self.granted: dict[int, float] = {}
        self.lines: list[dict[str, Any]] = []
        self.loads: dict[str, dict[str, Any]] = {}

    def on_request(self, request: int, need: states.Need, now: float, **how: Any) -> Any:
        if how.get("wants_slot", True):
            self.asked[request] = now, need.model
        return self._granted(super().on_request(request, need, now, **how), now)

    def on_ready(self, worker_id: str, slots: int, now: float) -> Any:
        if (worker := self.workers.get(worker_id)) and worker.need:
            self.loads[worker.need.model] = {
                "name": worker.need.model,
                "bytes": worker.need.bytes["ram"],
                "load_s": round(now - worker.load_at, 3),
                "slots": slots,
            }
        return self._granted(super().on_ready(worker_id, slots, now), now)

    def on_finished(self, request: int, now: float) -> Any:
        if request in self.granted:
            at, model = self.asked.pop(request)
            begun = self.granted.pop(request)
            seconds, waited = round(now - begun, 3), round(begun - at, 3)
            self.lines.append({"at": at, "model": model, "seconds": seconds, "waited": waited})
        return self._granted(super().on_finished(request, now), now)

    def _granted(self, actions: list[states.Action], now: float) -> list[states.Action]:
        for action in actions:
            if isinstance(action, states.Grant) and action.request in self.asked:
                self.granted[action.request] = now
        return actions

    def write(self, file: Path) -> None:
        begin = min((line["at"] for line in self.lines), default=0.0)
        found = [{**line, "at": round(line["at"] - begin, 3)} for line in self.lines]
        lines: list[dict[str, Any]] = [{"devices": [self.budget.cap("ram")]}]
        lines += [{"load": load} for load in self.loads.values()]
        lines += sorted(found, key=lambda line: line["at"])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _watched(name: str) -> Any:
    """An event by which somebody who waited may be served, too."""

    def on_event(self: Recorder, *args: Any, **how: Any) -> Any:
        now = next(a for a in reversed(args) if isinstance(a, float))
        return self._granted(getattr(Scheduler, name)(self, *args, **how), now)

    return on_event


for _name in ("abandoned", "hello", "failed", "gone", "residue", "measured", "timer"):
    setattr(Recorder, f"on_{_name}", _watched(f"on_{_name}"))


if __name__ == "__main__":
    from uml.supervisor import pool

    pool.Scheduler = Recorder  # type: ignore[misc]
    try:
        code = main(sys.argv[2:])
    finally:
        Recorder.made.write(Path(sys.argv[1]))
        print(f"{len(Recorder.made.lines)} requests recorded in {sys.argv[1]}")
    sys.exit(code)
