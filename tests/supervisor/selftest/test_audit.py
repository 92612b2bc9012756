from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uml.supervisor import tree
from uml.supervisor.selftest.audit import Seen, audit, look, settled

MB = 1 << 20
STATUS: dict[str, Any] = {
    "workers": [
        {
            "id": "w7",
            "model": "a",
            "state": "ready",
            "pid": 12,
            "lease_bytes": {"ram": 50 * MB, "fake0": 10 * MB},
            "memory_bytes": {"ram": 40 * MB, "fake0": 10 * MB},
        }
    ],
    "devices": [
        {
            "name": "ram",
            "kind": "ram",
            "total_bytes": 900 * MB,
            "cap_bytes": 800 * MB,
            "free_bytes": 500 * MB,
            "leased_bytes": 50 * MB,
        },
        {
            "name": "fake0",
            "kind": "fake",
            "total_bytes": 24 * MB,
            "cap_bytes": 24 * MB,
            "free_bytes": 14 * MB,
            "leased_bytes": 10 * MB,
        },
    ],
    "residue": [],
}
#: The launcher, the worker, and a child of it.
SEEN = Seen(frozenset({"tok"}), {11: "tok", 12: "tok", 13: "tok"})


def test_agreement_is_silent() -> None:
    assert audit(STATUS, SEEN) == []


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            replace(SEEN, marked=SEEN.marked | {99: "old"}),
            "orphans: process 99 belongs to no worker",
        ),
        (replace(SEEN, marked={11: "tok"}), "has no process 12"),
        (replace(SEEN, zombies=(77,)), "orphans: process 77 was not collected"),
        (
            replace(SEEN, tokens=frozenset({"tok", "old"})),
            "ledger: 2 entries on disk for 1 workers",
        ),
        (replace(SEEN, tokens=frozenset({"other"})), "ledger: 1 entries"),
        (replace(SEEN, tokens=frozenset()), "ledger: 0 entries"),
    ],
)
def test_processes_and_ledger_that_do_not_agree_are_named(seen: Seen, says: str) -> None:
    assert any(says in wrong for wrong in audit(STATUS, seen))


def _device(index: int, **values: int) -> Callable[[dict[str, Any]], None]:
    return lambda status: status["devices"][index].update(values)


@pytest.mark.parametrize(
    "spoil",
    [
        _device(0, leased_bytes=51 * MB),
        _device(0, cap_bytes=49 * MB),
        _device(1, free_bytes=13 * MB),
        _device(1, leased_bytes=11 * MB),
        lambda s: s["workers"][0]["memory_bytes"].update(fake0=11 * MB),
        lambda s: s["workers"][0]["lease_bytes"].update(fake0=9 * MB),
        lambda s: s["residue"].append(
            {"bytes": 1, "device": "fake0", "model": "b", "worker": "w6", "pids": []}
        ),
    ],
)
def test_books_that_are_a_byte_off_are_noticed(spoil: Callable[[dict[str, Any]], None]) -> None:
    status = copy.deepcopy(STATUS)
    spoil(status)
    assert audit(status, SEEN)


def test_settled_means_the_model_alone_and_ready() -> None:
    assert settled(STATUS, "a") and not settled(STATUS, "b") and not settled(STATUS, None)
    assert settled({"workers": []}, None)
    two = {"workers": STATUS["workers"] * 2}
    assert not settled(two, "a")


def test_look_finds_processes_of_this_home_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "abc.json").write_text("{}")

    def start(home: Path) -> subprocess.Popen[bytes]:
        environ = {tree.TOKEN: "abc", "UML_SCRATCH": str(home / "spool")}
        code = "import sys; print(flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environ, stdin=-1, stdout=-1, start_new_session=True
        )
        assert process.stdout and process.stdout.readline()  # it has its environment now
        return process

    ours, others = start(tmp_path), start(tmp_path / "other")
    try:
        seen = look(tmp_path, None)
        assert seen.marked == {ours.pid: "abc"} and seen.tokens == {"abc"}
    finally:
        for process in (ours, others):
            process.communicate()
