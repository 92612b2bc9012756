from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from uml.supervisor import bootstrap, installer
from uml.supervisor.bootstrap import ensure_venv, requirements, unsatisfied
from uml.supervisor.installer import InstallError

RUN = Path(__file__).resolve().parents[2] / "run.py"


def test_requirements_come_from_setup_cfg() -> None:
    own, test = requirements(), requirements("test")
    assert any(r.startswith("msgpack") for r in own)
    assert set(own) < set(test) and any(r.startswith("pytest") for r in test)


def test_own_requirements_are_met_here() -> None:
    assert unsatisfied(requirements()) == []


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("thing", True),
        ("thing>=2.4", True),
        ("thing>=2.4.1,<3", True),
        ("thing<2.4", False),
        ("thing >= 3", False),
        ("thing==2.4", True),
        ("thing==2.5", False),
        ("absent>=1", False),
    ],
)
def test_version_bounds_are_compared_by_number(
    monkeypatch: pytest.MonkeyPatch, requirement: str, met: bool
) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        if name != "thing":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.4.10rc1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert (unsatisfied([requirement]) == []) is met


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Environments that were made, without making them."""
    venvs: list[Path] = []

    def create(path: Path, log: installer.Sink, *, pip: bool = False) -> None:
        venvs.append(path)
        path.mkdir(parents=True)

    monkeypatch.setenv("UML_HOME", str(tmp_path))
    monkeypatch.setattr(installer, "require_venv", lambda: None)
    monkeypatch.setattr(installer, "create_venv", create)
    monkeypatch.setattr(installer, "install", lambda *_: None)
    return venvs


def test_environment_is_made_once_per_requirements(made: list[Path]) -> None:
    first = ensure_venv("cli", ["a>=1"])
    assert ensure_venv("cli", ["a>=1"]) == first and len(made) == 1
    assert ensure_venv("cli", ["a>=2"]) != first and len(made) == 2


def test_environment_depends_on_the_interpreter(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure_venv("cli", ["a"])
    monkeypatch.setattr(installer, "base_python", lambda: "/other/python")
    assert ensure_venv("cli", ["a"]) != first


def test_interrupted_environment_is_made_again(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InstallError("no network")

    with monkeypatch.context() as patch, pytest.raises(InstallError):
        patch.setattr(installer, "install", fail)
        ensure_venv("cli", ["a"])
    assert ensure_venv("cli", ["a"]).exists() and len(made) == 2


def test_start_says_in_one_line_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise InstallError(installer.VENV_MISSING)

    monkeypatch.setattr(bootstrap, "unsatisfied", lambda _: ["aiohttp"])
    monkeypatch.setattr(bootstrap, "ensure_venv", fail)
    assert bootstrap.start(["ls"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1 and "apt install python3-venv" in out.err


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["ls"], "cli"),
        (["pull", "starter/chat"], "cli"),
        (["pull", "hf:org/repo:Q4_K_M"], "hf"),
        (["test", "--fast"], "test"),
    ],
)
def test_command_gets_an_environment_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], name: str
) -> None:
    entered: list[tuple[str, list[str]]] = []

    def ensure(environment: str, wanted: list[str]) -> Path:
        entered.append((environment, wanted))
        return Path("/made")

    monkeypatch.setenv("UML_ENTERED_VENV", "")  # what is set in its place goes with the test
    monkeypatch.setattr(bootstrap, "unsatisfied", lambda wanted: wanted)
    monkeypatch.setattr(bootstrap, "ensure_venv", ensure)
    monkeypatch.setattr(os, "execv", lambda path, argv: sys.exit(path))
    with pytest.raises(SystemExit, match="/made/bin/python"):
        bootstrap.start(argv)
    wanted = requirements() if name == "cli" else requirements(name)
    assert entered == [(name, wanted)]


def test_bare_interpreter_hands_over_to_our_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any start but the first: the environment is there, nothing is fetched, and an interpreter
    without a single package (`-S`) reaches the command line."""

    def borrow(path: Path, *_: object) -> None:
        (site,) = path.glob("lib/python3*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])

    monkeypatch.setenv("UML_HOME", str(tmp_path))
    monkeypatch.setattr(
        installer, "create_venv", lambda path, _log: venv.create(path, symlinks=True)
    )
    monkeypatch.setattr(installer, "install", borrow)
    ensure_venv("cli", requirements())
    environ = {"PATH": "/nowhere", "HOME": str(tmp_path), "UML_HOME": str(tmp_path)}
    command = [installer.base_python(), "-S", str(RUN), "--help"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout and done.stderr == ""


def test_entered_environment_is_not_entered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the mark set, a start goes straight to the command line whatever is missing."""
    monkeypatch.setenv("UML_ENTERED_VENV", "/somewhere")
    monkeypatch.setattr(bootstrap, "unsatisfied", lambda _: ["aiohttp"])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("entered again"))
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(bootstrap.start(["--help"]))
    assert caught.value.code in (0, None)
    assert "UML_ENTERED_VENV" not in os.environ


def test_old_python_is_refused_in_one_line() -> None:
    code = (
        "import sys, runpy; sys.version_info = (3, 9, 2); sys.version = '3.9.2 x';"
        f"runpy.run_path({str(RUN)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "uml needs Python 3.11 or later, this is 3.9.2\n"


def test_run_py_parses_with_old_pythons() -> None:
    """So that the refusal can be said at all."""
    import ast

    ast.parse(RUN.read_text(), feature_version=(3, 6))
