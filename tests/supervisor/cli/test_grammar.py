"""What is typed wrong, and how that is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.cli.conftest import ROOT, Shell
from tests.supervisor.stub_server import Stub
from uml.supervisor import cli
from uml.supervisor.cli import failures

MISUSE = [
    [],
    ["frobnicate"],
    ["--json"],
    ["ps", "--jsn"],
    ["ps", "extra"],
    ["load"],
    ["load", "a", "b"],
    ["load", "a", "--ctx", "0"],
    ["load", "a", "--keep-alive", "soon"],
    ["unload"],
    ["unload", "a", "--all"],
    ["swap", "--force"],
    ["serve", "--port", "99999"],
    ["backends"],
    ["backends", "instal", "x"],
    ["config", "chek"],
    ["logs", "-n", "many"],
    ["run"],
    ["run", "a", "--temperature", "hot"],
    ["run", "a", "b", "--sed", "1"],
    ["pull"],
    ["show", "--json=3", "x"],
]


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == sorted(cli.build()[1].names)


@pytest.mark.parametrize("argv", MISUSE, ids=" ".join)
def test_misuse_is_two_lines_and_code_2(
    argv: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == failures.MISUSE
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("hint: ") for line in rest)


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["lod", "x"], "load"),
        (["Swap", "x"], "swap"),
        (["backends", "instal", "x"], "install"),
        (["ps", "--jsno"], "--json"),
        (["load", "x", "--keepalive", "3"], "--keep-alive"),
    ],
    ids=" ".join,
)
def test_unknown_words_name_the_nearest(
    argv: list[str], nearest: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == failures.MISUSE
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ls", "run"])
def test_an_address_that_was_named_is_not_replaced_by_the_disk_or_a_new_server(
    command: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [command, *(["m", "hi"] if command == "run" else []), "--url", "http://127.0.0.1:9"]
    assert cli.main(argv) == failures.UNREACHABLE
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_what_is_not_uml_at_the_address_is_said(
    stub: Stub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /health"] = {"status": "ok"}
    assert cli.main(["ls"]) == failures.FAILED
    assert "is not uml" in capsys.readouterr().err


def test_an_address_that_is_none_is_an_error_not_a_traceback(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ps", "--url", "ftp://x"]) == failures.FAILED
    assert capsys.readouterr().err.startswith("error: 'ftp://x'")


def test_ctrl_c_is_quiet_and_code_130(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("uml.supervisor.cli.fitness.version", interrupted)
    assert cli.main(["version"]) == failures.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_messages_cannot_command_the_terminal(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = {"error": {"message": "\x1b[2Jgone", "code": "conflict"}}
    stub.routes["POST /unload"] = (409, evil)
    assert cli.main(["unload", "alpha"]) == failures.FAILED
    assert "\x1b" not in capsys.readouterr().err


def test_version_is_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == 0
    from uml.protocol import __version__

    assert json.loads(capsys.readouterr().out)["version"] == __version__


def test_a_reader_that_leaves_early_is_no_error(shell: Shell) -> None:
    command = f"{sys.executable} {ROOT / 'run.py'} --help | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_from_a_checkout_hints_name_what_the_user_has(shell: Shell) -> None:
    done = shell("ps")
    assert done.returncode == failures.UNREACHABLE
    assert "`./run.py serve`" in done.stderr
