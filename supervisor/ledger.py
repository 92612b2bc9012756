"""What is running, on disk, so that the next start can end what a killed supervisor left.

One small file per worker, named by its launch token: written before the worker is spawned,
removed when its tree is gone. Processes are known by pid *and* start time, or by the token in
their environment, never by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor import tree


@dataclass(frozen=True)
class Reaped:
    """What the start-up reaper ended."""

    token: str
    pids: tuple[int, ...]
    stuck: tuple[int, ...]


class Ledger:
    """folder: one per UML_HOME; several supervisors may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def enter(self, token: str, pid: int | None) -> None:
        """Note a worker: first without a pid, again once it is known."""
        me = os.getpid()
        entry = {
            "supervisor": [me, tree.start_time(me)],
            "worker": [pid, tree.start_time(pid)] if pid else None,
        }
        path = self._folder / f"{token}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(entry))
        temporary.replace(path)

    def leave(self, token: str) -> None:
        (self._folder / f"{token}.json").unlink(missing_ok=True)

    def reap(self, patience_s: float = 3.0) -> list[Reaped]:
        """End the workers of supervisors that are gone; one entry for each, without pids when it
        had gone too. Blocks up to `patience_s` per worker."""
        ended = []
        for path in sorted(self._folder.glob("*.json")):
            token = path.stem
            try:
                entry = json.loads(path.read_text())
                owner, worker = entry["supervisor"], entry["worker"]
                if owner[1] is not None and tree.start_time(owner[0]) == owner[1]:
                    continue
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                worker = None  # half-written: the token still finds its processes
            known = [worker[0]] if worker and tree.start_time(worker[0]) == worker[1] else []
            result = _end(token, known, patience_s)
            ended.append(result)
            if not result.stuck:
                with contextlib.suppress(OSError):
                    path.unlink()
        return ended


def _end(token: str, known: list[int], patience_s: float) -> Reaped:
    seen: set[int] = set()
    deadline = time.monotonic() + patience_s
    while True:
        found = {*known, *(d for pid in known for d in tree.descendants(pid))}
        found |= set(tree.everywhere(token)) | seen
        live = tree.living(found)
        seen |= set(live)
        tree.reap(seen)
        if not live or time.monotonic() > deadline:
            return Reaped(token, tuple(sorted(seen)), tuple(sorted(live)))
        tree.send_kill(live)
        time.sleep(0.01)
