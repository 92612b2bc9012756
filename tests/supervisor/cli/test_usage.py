"""How the command line is used, and misused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.cli.conftest import ROOT, Uml
from tests.supervisor.stub_server import Stub
from uml.supervisor.cli import main


def commands() -> list[list[str]]:
    words = "up serve stop test ls show ps status load unload swap run pull rm logs doctor version"
    nested = [["backends", w] for w in ("ls", "install", "rm", "check")]
    return [*([w] for w in words.split()), *nested, ["config", "show"], ["config", "check"]]


@pytest.mark.parametrize("command", ["ps", "status", "load m", "unload m", "swap m", "stop"])
def test_nobody_there_is_exit_code_3(home: Path, uml: Uml, command: str) -> None:
    code, out, err = uml(*command.split())
    assert code == 3 and not out
    assert err.startswith("error: no supervisor answers") and "hint: " in err


def test_ls_works_without_a_supervisor(home: Path, uml: Uml) -> None:
    assert uml("ls")[0] == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("laod tiny", "did you mean 'load'"),
        ("ps --what", "--what"),
        ("load", "MODEL"),
        ("unload", "--all"),
        ("serve --port x", "x"),
        ("backends", "subcommand"),
        ("load tiny --keep-alive soon", "soon"),
    ],
)
def test_misuse_is_exit_code_2(home: Path, uml: Uml, line: str, told: str) -> None:
    code, out, err = uml(*line.split())
    assert code == 2 and not out
    assert err.startswith("error: ") and told in err


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_shows_an_example(uml: Uml, command: list[str]) -> None:
    code, out, _ = uml(*command, "--help")
    assert code == 0 and "example" in out.lower()
    assert re.search(rf"(uml|run\.py) {' '.join(command)}", out)


def test_help_lists_every_command(uml: Uml) -> None:
    code, out, _ = uml("--help")
    assert code == 0
    assert all(re.search(rf"^ +{c[0]}\b", out, re.MULTILINE) for c in commands())


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, run; run.mount(); from uml.supervisor.cli import main; main(['--help'])\n"
        "sys.exit(bool({'aiohttp', 'rich', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_a_bug_is_one_line_unless_asked(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.routes["GET /status"] = {"workers": 5}
    assert main(["ps"]) == 1
    quiet = capsys.readouterr().err
    monkeypatch.setenv("UML_DEBUG", "1")
    assert main(["ps"]) == 1
    loud = capsys.readouterr().err
    assert "Traceback" not in quiet and "Traceback" in loud
