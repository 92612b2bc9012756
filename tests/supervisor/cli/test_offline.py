"""Commands that need no supervisor: the disk answers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.supervisor.cli.conftest import Shell
from tests.supervisor.formats import hf
from tests.supervisor.stub_server import Stub
from uml.supervisor.cli import failures, main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    return code, out, err


@pytest.fixture
def models(home: Path) -> Path:
    folder = home / "models"
    folder.mkdir(parents=True)
    facts = {"name": "Tiny", "weights_bytes": 64 << 20, "n_ctx": 2048}
    (folder / "tiny.fake.json").write_text(json.dumps(facts))
    (folder / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0 and then nothing")
    return folder


def test_ls_reads_the_disk_and_gives_the_reason_of_a_broken_file(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "ls")
    head, bad, tiny = out.splitlines()
    assert code == 0
    assert head.split()[0] == "NAME"
    assert bad.split()[:2] == ["bad", "broken"]
    assert len(bad.split()) > 7  # the reason
    assert tiny.split()[:3] == ["tiny", "llm", "fake"]


def test_columns_line_up(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "ls")
    head, *rows = out.splitlines()
    for title in ("TYPE", "FORMAT", "QUANT", "BACKEND"):
        at = head.index(title)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows), title


def test_ls_of_an_empty_home_says_what_to_do_beside_the_data(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "ls")
    assert (code, out) == (0, "")
    assert "pull starter/chat" in err
    assert json.loads(run(capsys, "ls", "--json")[1]) == []


def test_show_puts_the_estimate_beside_what_was_measured(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "show", "tiny")
    assert code == 0
    assert re.search(r"^estimate +\d+\.\d MiB: 64\.0 MiB weights", out, re.MULTILINE)
    assert re.search(r"^measured +not loaded yet", out, re.MULTILINE)
    assert str(models / "tiny.fake.json") in out


def test_show_of_what_no_backend_runs_gives_the_estimate_all_the_same(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf.write(home / "models/Tiny", hf.TINY, hf.llama(hf.TINY))
    assert re.search(r"^tiny +llm +safetensors +BF16 ", run(capsys, "ls")[1], re.MULTILINE)
    code, out, _ = run(capsys, "show", "tiny")
    assert code == 0
    assert re.search(r"^backend +none: no backend here runs safetensors", out, re.MULTILINE)
    assert re.search(
        r"^estimate +\S+ MiB: .* weights, .* context, .* compute; and", out, re.MULTILINE
    )
    assert "measured" not in out and "place" not in out
    assert json.loads(run(capsys, "show", "tiny", "--json")[1])["estimate"]["weights_bytes"] > 0


def test_show_of_a_loaded_model_knows_what_the_disk_knows(
    models: Path, stub: Stub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /v1/models/tiny"] = {"id": "tiny", "state": "ready"}
    stub.routes["GET /status"] = {"home": str(home)}
    found = json.loads(run(capsys, "show", "tiny", "--json")[1])
    assert found["state"] == "ready"
    assert found["estimate"]["weights_bytes"] == 64 << 20


def test_show_of_a_server_elsewhere_does_not_mix_in_this_disk(
    models: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"id": "tiny", "state": "ready"}
    stub.routes["GET /v1/models/tiny"] = there
    stub.routes["GET /status"] = {"home": "/elsewhere"}
    assert json.loads(run(capsys, "show", "tiny", "--json")[1]) == there


def test_show_of_a_broken_file_gives_the_reason(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "show", "bad")
    assert code == 0
    assert re.search(r"^broken +\S+", out, re.MULTILINE)


def test_rm_deletes_what_is_ours(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "rm", "tiny")
    assert (code, out) == (0, "removed tiny\n")
    assert not (models / "tiny.fake.json").exists()
    code, _, err = run(capsys, "rm", "tiny")
    assert code == failures.FAILED
    assert err.startswith("error: model 'tiny' is not known")


def test_pull_of_a_path_says_the_id(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "Other-Model.fake.json"
    source.write_text('{"name": "other"}')
    code, out, _ = run(capsys, "pull", str(source))
    assert (code, out) == (0, "other-model\n")
    assert "other-model" in run(capsys, "ls")[1]


@pytest.mark.parametrize("source", ["nonsense", "/no/such/file.gguf", "starter/nothing"])
def test_pull_of_what_is_no_source_fails_in_a_line(
    source: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "pull", source)
    assert (code, out) == (failures.FAILED, "")
    assert err.startswith("error: ")


def test_config_show_says_where_each_value_comes_from(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("uml.toml").write_text('keep_alive = "7m"\n[models."tiny"]\nslots = 2\n')
    monkeypatch.setenv("UML_API_KEY", "very secret")
    _, out, _ = run(capsys, "config", "show", "--json")
    values = json.loads(out)["values"]
    assert values["keep_alive"]["value"] == 420.0
    assert values["keep_alive"]["from"].endswith("uml.toml")
    assert values["home"] == {"value": str(home), "from": "UML_HOME"}
    assert values["queue_limit"]["from"] == "default"
    assert values["models.tiny.slots"]["value"] == 2
    assert values["api_key"] == {"value": "***", "from": "UML_API_KEY"}
    assert "very secret" not in run(capsys, "config", "show")[1]


def test_config_check_names_the_wrong_key(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("port = 1234\n")
    bad.write_text("prot = 1234\n")
    assert run(capsys, "config", "check", str(good))[0] == 0
    code, _, err = run(capsys, "config", "check", str(bad))
    assert code == failures.FAILED
    assert err.startswith("error: prot is not a key; did you mean port?")


def test_config_check_doubts_names_and_refuses_what_cannot_be_served(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "some.toml"
    file.write_text('preload = ["nobody"]')
    code, out, err = run(capsys, "config", "check", str(file))
    assert code == 0 and "right" in out and "no model here is called nobody" in err
    file.write_text("[models.a]\nsampling = {temprature = 1}")
    code, _, err = run(capsys, "config", "check", str(file))
    assert code == 1 and "temprature" in err


def test_a_wrong_configuration_stops_no_doctor(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("uml.toml").write_text("nonsense = 1\n")
    code, out, _ = run(capsys, "doctor", "--json")
    checks = json.loads(out)
    assert code == failures.FAILED
    assert len(checks) > 5
    (wrong,) = [c for c in checks if c["name"] == "configuration"]
    assert wrong["level"] == "fail"
    assert "nonsense" in wrong["what"]


def test_doctor_prints_the_fix_under_the_fault(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "doctor")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if "backend llama_cpp" in line)
    assert lines[at].startswith("warn")
    assert "fix: uml backends install llama_cpp" in lines[at + 1]
    assert ("fit" in err) and code == (1 if any(li.startswith("fail") for li in lines) else 0)


def test_backends_ls_lists_what_is_not_installed_too(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "backends", "ls")
    head, row, *others = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in others] == ["whisper_cpp", "piper"]
    assert head.split() == ["NAME", "STATUS", "VERSION", "DEVICES", "SIZE", "LICENCE"]
    assert row.split()[:3] == ["llama_cpp", "not", "installed"]
    data, *_ = json.loads(run(capsys, "backends", "ls", "--json")[1])
    assert (data["installed"], data["licence"]) == (False, "MIT")


@pytest.mark.parametrize("verb", ["install", "check", "rm"])
def test_unknown_backends_are_named_with_the_known_ones(
    verb: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "backends", verb, "nothing")
    assert code == failures.FAILED
    assert "nothing" in err


def test_backends_rm_of_one_in_use_is_refused(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /status"] = {"workers": [{"backend": "llama_cpp", "model": "a"}]}
    code, _, err = run(capsys, "backends", "rm", "llama_cpp")
    assert code == failures.FAILED
    assert "in use: a" in err


def test_a_home_that_cannot_be_written_is_an_error_in_a_line(
    home: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.parent.joinpath("file").write_text("")
    monkeypatch.setenv("UML_HOME", str(home.parent / "file" / "home"))
    done = shell("ls")
    assert done.returncode == failures.FAILED
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_file_name_cannot_command_the_terminal(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(models / "tiny.fake.json", models / "tiny\x1b[2J.fake.json")
    (name,) = (m["id"] for m in json.loads(run(capsys, "ls", "--json")[1]) if not m["error"])
    code, out, _ = run(capsys, "show", name)  # asserts that no escape code comes out
    assert code == 0
    assert "tiny?[2J.fake.json" in out
