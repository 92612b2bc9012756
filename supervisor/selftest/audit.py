"""Does what the supervisor says agree with what is there: `audit` is pure, `look` goes and sees.

Only one model is loaded when this is asked, and everything is settled; so the books have to agree
to the byte.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from uml.supervisor import tree


@dataclass(frozen=True)
class Seen:
    """What is there, looked at from outside. tokens: launch tokens in the ledger on disk. marked:
    pid -> launch token of every process on the machine that was started for this supervisor.
    zombies: its dead children that it has not collected."""

    tokens: frozenset[str]
    marked: Mapping[int, str]
    zombies: tuple[int, ...] = ()


def look(home: Path, supervisor_pid: int | None) -> Seen:
    """Read the ledger and scan the machine's processes."""
    tokens = frozenset(path.stem for path in (home / "ledger").glob("*.json"))
    zombies = []
    for child in tree.children(supervisor_pid) if supervisor_pid else ():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
                zombies.append(child)
    return Seen(tokens, marked(home), tuple(zombies))


def marked(home: Path) -> dict[int, str]:
    """Processes that carry a launch token and the mark of this home; pid -> token."""
    found = {}
    for pid in psutil.pids():
        if token := token_of(pid, home):
            found[pid] = token
    return found


def token_of(pid: int, home: Path) -> str:
    """The launch token of a process that was started for the supervisor of `home`, else ""."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            environ = dict(entry.partition(b"=")[::2] for entry in f.read().split(b"\0"))
    except OSError:
        return ""
    if environ.get(b"UML_SCRATCH") != os.fsencode(home / "spool"):
        return ""
    return environ.get(tree.TOKEN.encode(), b"").decode()


def settled(status: Mapping[str, Any], model: str | None) -> bool:
    """Whether `model` alone is loaded, a standby aside, or with None there is no process at all;
    and nothing else is under way."""
    if model is None:
        return not status["workers"]
    workers = [w for w in status["workers"] if w["model"]]
    return [(w["model"], w["state"]) for w in workers] == [(model, "ready")]


def audit(status: Mapping[str, Any], seen: Seen) -> list[str]:
    """What does not agree, a sentence each."""
    return [
        *_processes(status["workers"], seen),
        *_books(status["workers"], status["devices"]),
        *residue(status),
    ]


def residue(status: Mapping[str, Any]) -> list[str]:
    return [
        f"residue: {r['bytes']} bytes on {r['device']} of {r['model'] or r['worker']}"
        for r in status["residue"]
    ]


def _processes(workers: Sequence[Mapping[str, Any]], seen: Seen) -> list[str]:
    wrong = []
    mine = {seen.marked.get(worker["pid"]) for worker in workers}
    for worker in workers:
        if worker["pid"] not in seen.marked:
            wrong.append(f"orphans: worker {worker['id']} has no process {worker['pid']}")
    for pid, token in sorted(seen.marked.items()):
        if token not in mine:
            wrong.append(f"orphans: process {pid} belongs to no worker")
    if len(seen.tokens) != len(workers) or not mine - {None} <= seen.tokens:
        wrong.append(f"ledger: {len(seen.tokens)} entries on disk for {len(workers)} workers")
    wrong += [f"orphans: process {pid} was not collected" for pid in seen.zombies]
    return wrong


def _books(workers: Sequence[Mapping[str, Any]], devices: Sequence[Mapping[str, Any]]) -> list[str]:
    wrong = []
    for device in devices:
        name, leased = device["name"], device["leased_bytes"]
        leases = sum(w["lease_bytes"].get(name, 0) for w in workers)
        held = sum(w["memory_bytes"].get(name, 0) for w in workers)
        if leased != leases:
            wrong.append(f"ledger: {leased} bytes of {name} promised, workers hold {leases}")
        if leased > device["cap_bytes"]:
            wrong.append(f"ledger: {leased} bytes of {name} promised of {device['cap_bytes']}")
        if name != "ram" and held > leased:
            wrong.append(f"ledger: {held} bytes of {name} held, {leased} promised")
        # Nobody else can be on the fake device: there the books have to agree with it exactly.
        used = device["total_bytes"] - device["free_bytes"]
        if device["kind"] == "fake" and not used == held == leased:
            wrong.append(f"ledger: {used} bytes of {name} used, {held} held, {leased} promised")
    return wrong


def growth(pid: int) -> tuple[int, int]:
    """(open files, resident bytes) of a process. Raises: psutil.Error."""
    process = psutil.Process(pid)
    return process.num_fds(), process.memory_info().rss
