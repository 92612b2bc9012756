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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor import segments, tree


@dataclass(frozen=True)
class Reaped:
    """What the start-up reaper ended."""

    token: str
    pids: tuple[int, ...]
    stuck: tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """What is known of a worker. members: pid -> start time
    of everybody seen in its tree. shared: its files under /dev/shm."""

    members: Mapping[int, float]
    shared: Collection[str] = ()


class Ledger:
    """folder: one per UML_HOME; several supervisors may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def enter(self, token: str, known: Tree | None) -> None:
        """Note a worker: first without anything, again when there is something to know."""
        me = os.getpid()
        entry = {
            "supervisor": [me, tree.start_time(me)],
            "members": [list(member) for member in known.members.items()] if known else [],
            "shared": sorted(known.shared) if known else [],
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
                owner, members = entry["supervisor"], dict(entry.get("members", ()))
                shared = {str(path) for path in entry.get("shared", ())}
                if owner[1] is not None and tree.start_time(owner[0]) == owner[1]:
                    continue
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                # Half-written: the token still finds its processes.
                members, shared = {}, set()
            known = [pid for pid, started in members.items() if tree.start_time(pid) == started]
            result = _end(token, known, shared, patience_s)
            ended.append(result)
            if not result.stuck:
                with contextlib.suppress(OSError):
                    path.unlink()
        return ended


def _end(token: str, known: list[int], shared: set[str], patience_s: float) -> Reaped:
    seen: set[int] = set()
    shared |= segments.held(known)
    deadline = time.monotonic() + patience_s
    while True:
        found = {*known, *(d for pid in known for d in tree.descendants(pid))}
        found |= set(tree.everywhere(token)) | seen
        live = tree.living(found)
        seen |= set(live)
        tree.reap(seen)
        if not live or time.monotonic() > deadline:
            segments.sweep(shared)
            return Reaped(token, tuple(sorted(seen)), tuple(sorted(live)))
        tree.send_kill(live)
        time.sleep(0.01)
