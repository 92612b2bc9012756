"""`uml selftest` as a user has it. The long run is `make soak`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.serving import BASE, CHAT, RUN, fake_model, until
from uml.supervisor.cli import main
from uml.supervisor.selftest import drill, house
from uml.supervisor.selftest.plan import MOMENTS


def selftest(home: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), "selftest", *argv],
        env=os.environ | {"UML_HOME": str(home), "TMPDIR": str(home.parent)} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(180)
def test_chaos_on_the_fake_device_loses_nothing(tmp_path: Path) -> None:
    found = report(selftest(tmp_path / "home", "--fake", "--chaos", "--swaps=20", "--json"))
    assert found["ok"] and found["swaps"] == 20
    assert set(found["receipts"]) == {"yes"}
    assert found["requests"]["right"] > 40 and not found["requests"]["lost"]
    assert sum(found["kills"].values()) >= len(MOMENTS)
    assert found["supervisors_killed"] == 1
    assert found["swap_s"]["p50"] > 0 and found["release_s"]["p99"] > 0
    assert [p.name for p in tmp_path.iterdir()] == [], "nothing is left, the user's home untouched"


def test_two_models_of_the_user_are_swapped_without_touching_their_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("big", "small"):
        fake_model(home, name, tasks=["chat"])
    before = sorted(home.rglob("*"))
    done = selftest(home, "--swaps=3", "--seed=7", UML_SCAN_DEFAULT_STORES="false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything held" in done.stdout and "3 of 3" in done.stdout
    assert "between big and small, seed 7" in done.stderr
    assert [p for p in sorted(home.rglob("*")) if p.suffix != ".sqlite"] == before


def test_one_model_is_too_few_and_the_hint_says_what_to_do(tmp_path: Path) -> None:
    fake_model(tmp_path / "home", "only")
    done = selftest(tmp_path / "home", UML_SCAN_DEFAULT_STORES="false")
    assert done.returncode == 1
    assert "needs two models that can answer; found here: only" in done.stderr
    assert "pull starter/embed" in done.stderr


def test_device_that_keeps_its_bytes_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test of the test: with a driver that never gives back, the run has to fail."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(house._FAKE_OPTIONS, "pong", {"never_release": True})
    monkeypatch.setattr(drill, "_SETTLE_S", 4.0)
    assert main(["selftest", "--fake", "--swaps=2"]) == 1
    said = capsys.readouterr()
    assert "NOT everything held: swaps, requests, answers, release, residue" in said.out
    assert "verified no" in said.out and "no room for ping" in said.out
    assert "logs of the supervisor and its workers are kept in" in said.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_selftest_that_is_interrupted_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(RUN), "selftest", "--fake", "--swaps=1000"],
        env=os.environ | {"UML_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        below = until(lambda: len(found := children(process)) >= 4 and found)
        process.send_signal(number)
        assert process.wait(30) == 130
        assert not psutil.wait_procs(below, timeout=5)[1]
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The supervisor, a launcher, a worker, and what the worker started."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.llama
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    "UML_TEST_LLAMA_PYTHON" not in os.environ,
    reason="needs the llama_cpp environment: ./run.py test",
)
def test_chaos_with_real_models_loses_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "backends").mkdir(parents=True)
    python = Path(os.environ["UML_TEST_LLAMA_PYTHON"])
    (home / "backends" / "llama_cpp").symlink_to(python.parent.parent)
    found = report(
        selftest(
            home,
            *(CHAT, BASE, "--chaos", "--swaps=4", "--json"),
            UML_MODEL_DIRS=os.environ["UML_TEST_MODELS"],
            UML_SCAN_DEFAULT_STORES="false",
        )
    )
    assert found["ok"] and found["swaps"] == 4 and found["supervisors_killed"] == 1
    assert set(found["receipts"]) == {"yes"}
    assert found["requests"]["right"] > 8
