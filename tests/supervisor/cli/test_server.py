"""`up`, `serve`, `stop`: what they decide, without setting anything up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.stub_server import Stub
from uml.supervisor.cli import failures, main


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that the server would have been started with."""
    found: list[Any] = []

    def serve(config: Any, *, headless: bool = False, reread: Any = None) -> int:
        assert reread(None) == config
        found.append((config, headless))
        return 0

    monkeypatch.setattr("uml.supervisor.app.serve", serve)
    return found


@pytest.fixture
def set_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The set-ups asked for; each reports a download and a step."""
    found: list[Any] = []

    def up(
        config: Any,
        progress: Callable[[str, float | None], None],
        pulled: Callable[[str, int, int], None],
    ) -> None:
        found.append(config)
        pulled("model.gguf", 5, 10)
        pulled("model.gguf", 10, 10)
        progress("making the environment", None)
        models = config.home / "models"
        models.mkdir(parents=True)
        (models / "starter.fake.json").write_text("{}")

    monkeypatch.setattr("uml.supervisor.bootstrap.up", up)
    return found


def test_serve_takes_options_over_the_configuration(served: list[Any], home: Path) -> None:
    Path("my.toml").write_text('preload = ["first"]\nport = 1\n')
    argv = ["serve", "--config", "my.toml", "--port", "0", "--load", "a", "--load=b", "--headless"]
    assert main(argv) == 0
    ((config, headless),) = served
    assert (config.port, config.preload, headless) == (0, ("first", "a", "b"), True)


def test_up_sets_up_serves_and_says_what_to_try(
    set_up: list[Any], served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--load", "starter"]) == 0
    assert len(set_up) == 1
    assert served[0][0].preload == ("starter",)
    out, err = capsys.readouterr()
    assert out == ""  # the first line on stdout is the server's
    assert "making the environment" in err
    assert 'uml run starter "' in err
    assert f"http://127.0.0.1:{served[0][0].port}/v1/chat/completions" in err


def test_up_without_serving_ends_after_the_set_up(set_up: list[Any], served: list[Any]) -> None:
    assert main(["up", "--no-serve"]) == 0
    assert (len(set_up), served) == (1, [])


def test_up_beside_a_running_server_says_so_and_touches_nothing(
    set_up: list[Any],
    served: list[Any],
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UML_PORT", stub.url.rpartition(":")[2])
    assert main(["up"]) == 0
    assert (set_up, served) == ([], [])
    assert f"already running at {stub.url}" in capsys.readouterr().out
    assert main(["serve"]) == failures.FAILED
    assert served == []


def test_stop_waits_until_nobody_answers(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"service": "uml", "status": "stopping"}] * 3

    def health(_: object) -> object:
        if answers:
            return answers.pop()
        raise ConnectionAbortedError

    stub.routes["GET /health"] = health
    stub.routes["POST /shutdown"] = (202, {"status": "stopping"})
    assert main(["stop", "--force", "--json"]) == 0
    assert stub.bodies("POST /shutdown") == [{"force": True}]
    assert not answers
    assert json.loads(capsys.readouterr().out)["stopped"] is True


def test_a_server_that_ends_at_once_is_reported_with_its_own_words(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "-d", "--host", "256.0.0.1", "--port", "0"]) == failures.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: host = '256.0.0.1'")


def test_the_tests_are_reached_by_their_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def start(argv: list[str]) -> int:
        asked.append(argv)
        return 7

    monkeypatch.setattr("uml.supervisor.bootstrap.start", start)
    assert main(["test", "--fast", "-k", "x"]) == 7
    assert asked == [["test", "--fast", "-k", "x"]]
