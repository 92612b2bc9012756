from __future__ import annotations

import json

import pytest

from tests.supervisor.stub_server import Stub
from uml.supervisor.cli import main


def test_following_prints_lines_as_they_come_and_ends_with_the_supervisor(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /logs/stream"] = b"one\ntwo \x1b[31mred\n"
    assert main(["logs", "tiny", "-f", "-n", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == "one\ntwo [31mred\n", "nothing commands the terminal"
    assert "the supervisor has ended" in err
    asked = [path for _, path, _, _ in stub.seen]
    assert "/logs/stream?model=tiny&lines=5" in asked


def test_json_is_an_object_a_line(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["GET /logs"] = b'{"event": "worker.ready"}\n'
    assert main(["logs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"event": "worker.ready"}
    assert "format=json" in stub.seen[-1][1]
