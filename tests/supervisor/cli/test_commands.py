"""What commands print and how they end, against canned answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.cli.conftest import Uml
from tests.supervisor.stub_server import DONE, Sse, Stub, data, stub_server
from uml.protocol import errors

ROOT = Path(__file__).resolve().parents[3]
MiB = 1 << 20
MODEL = {
    "id": "tiny",
    "object": "model",
    "created": 1_700_000_000,
    "type": "llm",
    "format": "gguf",
    "quantization": "Q4_1",
    "size_bytes": 94 * MiB,
    "context_length": 8192,
    "state": "ready",
    "backend": "llama_cpp",
    "aliases": [],
    "error": None,
    "source": "local",
    "tasks": ["chat", "complete"],
}
WORKER = {
    "id": "w1",
    "model": "tiny",
    "backend": "llama_cpp",
    "state": "ready",
    "device": "ram",
    "pid": 4242,
    "lease_bytes": {"ram": 200 * MiB},
    "memory_bytes": {"ram": 180 * MiB},
    "context": 4096,
    "slots": 4,
    "busy": 0,
    "waiting": 0,
    "until": None,
    "pinned": True,
    "load_s": 0.31,
    "stage": "",
    "progress": None,
    "facts": {},
    "reason": "",
}
RECEIPT = {
    "model": "tiny",
    "worker": "w1",
    "reason": "unload",
    "pids": [4242],
    "stuck": [],
    "before": {"ram": 180 * MiB},
    "after": {},
    "freed": {"ram": 180 * MiB},
    "killed_ms": 3.0,
    "ms": 12.0,
    "verified": "yes",
    "at": 1_700_000_000.0,
}
STATUS = {
    "version": "0.1.0",
    "pid": 1,
    "uptime_s": 5.0,
    "url": "http://127.0.0.1:8484",
    "devices": [
        {
            "name": "ram",
            "kind": "cpu",
            "total_bytes": 8 << 30,
            "cap_bytes": 7 << 30,
            "free_bytes": 6 << 30,
            "leased_bytes": 200 * MiB,
            "detail": "",
        }
    ],
    "workers": [WORKER],
    "waiting": {},
    "failed": [],
    "residue": [],
    "receipts": [RECEIPT],
}
PLAN = {
    "model": "big",
    "fits": True,
    "need_bytes": {"ram": 400 * MiB},
    "victims": [{"model": "tiny", "bytes": {"ram": 200 * MiB}, "busy": 1}],
    "load_s": 1.5,
    "reason": "",
}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    monkeypatch.setenv("UML_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with stub_server() as made:
        made.routes["GET /health"] = {"service": "uml", "status": "ok", "pid": 1}
        made.routes["GET /v1/models"] = {"object": "list", "data": [MODEL]}
        made.routes["GET /v1/models/tiny"] = MODEL
        made.routes["GET /status"] = STATUS
        monkeypatch.setenv("UML_URL", made.url)
        yield made


def test_ls_has_its_columns(stub: Stub, uml: Uml) -> None:
    code, out, _ = uml("ls")
    head, row = out.splitlines()
    assert code == 0
    assert head.split() == ["NAME", "TYPE", "FORMAT", "QUANT", "SIZE", "BACKEND", "SOURCE"]
    assert row.split() == ["tiny", "llm", "gguf", "Q4_1", "94.0", "MiB", "llama_cpp", "local"]


def test_ls_shows_why_a_file_is_broken(stub: Stub, uml: Uml) -> None:
    broken = MODEL | {"id": "bad", "type": None, "error": "truncated\x1b[31m at 5 bytes"}
    stub.routes["GET /v1/models"] = {"data": [broken]}
    code, out, _ = uml("ls")
    assert code == 0 and "truncated" in out


def test_ps_has_its_columns(stub: Stub, uml: Uml) -> None:
    code, out, _ = uml("ps")
    titles = ["NAME", "BACKEND", "DEVICE", "MEMORY", "CONTEXT", "SLOTS", "STATE", "UNTIL"]
    assert code == 0
    assert out.splitlines()[0].split() == titles
    assert "180.0 MiB" in out and "4096" in out and "ready" in out


@pytest.mark.parametrize("command", ["ls", "ps", "status", "show tiny"])
def test_json_is_data(stub: Stub, uml: Uml, command: str) -> None:
    code, out, _ = uml(*command.split(), "--json")
    assert code == 0
    found = json.loads(out)
    expected = {"ls": [MODEL], "ps": [WORKER], "status": STATUS, "show tiny": MODEL}
    assert found == expected[command]


def test_show_tells_what_is_known(stub: Stub, uml: Uml) -> None:
    code, out, _ = uml("show", "tiny")
    assert code == 0 and "Q4_1" in out and "8192" in out


def test_status_shows_devices_workers_and_receipts(stub: Stub, uml: Uml) -> None:
    code, out, _ = uml("status")
    assert code == 0
    assert "8.0 GiB" in out and "tiny" in out and "180.0 MiB" in out


def test_ps_warns_of_memory_that_did_not_come_back(stub: Stub, uml: Uml) -> None:
    left = {"worker": "w0", "model": "old", "device": "cuda:0", "bytes": 5 * MiB, "pids": [7]}
    stub.routes["GET /status"] = STATUS | {"residue": [left]}
    _, _, err = uml("ps")
    assert "5.0 MiB" in err and "cuda:0" in err and "old" in err


FAILED = {
    "model": "bad",
    "state": "failed",
    "cause": "loading bad failed: the worker was killed by SIGSEGV",
    "until": None,
    "stderr": ["a line of its stderr"],
    "report": "/home/me/crashes/1-bad.json",
}
CRASH = {"at": 1_700_000_000.0, "cause": FAILED["cause"], "report": FAILED["report"]}


def test_ps_shows_a_model_that_keeps_failing_with_its_cause(stub: Stub, uml: Uml) -> None:
    stub.routes["GET /status"] = STATUS | {"failed": [FAILED]}
    _, out, err = uml("ps")
    row = next(line for line in out.splitlines() if line.startswith("bad"))
    assert "failed" in row and "tried again" in row
    assert "SIGSEGV" in err and "1-bad.json" in err


def test_show_says_why_a_model_failed_and_where_the_report_is(stub: Stub, uml: Uml) -> None:
    known = MODEL | {"id": "bad", "state": "failed", "last_crash": CRASH}
    stub.routes["GET /v1/models/bad"] = known
    stub.routes["GET /status"] = STATUS | {"failed": [FAILED]}
    _, out, _ = uml("show", "bad")
    assert "SIGSEGV" in out and "1-bad.json" in out and "a line of its stderr" in out


def test_logs_of_a_model_that_failed_name_the_report(stub: Stub, uml: Uml) -> None:
    stub.routes["GET /v1/models/bad"] = MODEL | {"state": "failed", "last_crash": CRASH}
    stub.routes["GET /logs"] = b"one\n"
    code, out, err = uml("logs", "bad")
    assert (code, out) == (0, "one\n") and "1-bad.json" in err


def test_load_says_what_it_took_and_nothing_else_on_stdout(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /load"] = Sse(
        data({"stage": "weights", "fraction": 0.5}, "progress"), data(WORKER, "done")
    )
    code, out, _ = uml("load", "tiny", "--keep-alive", "10m")
    assert code == 0
    assert len(out.splitlines()) == 1 and "tiny" in out and "180.0 MiB" in out
    assert stub.bodies("POST /load")[0]["keep_alive"] == 600


@pytest.mark.parametrize("command", ["load", "swap"])
def test_dry_run_says_who_goes_how_much_and_how_long(stub: Stub, uml: Uml, command: str) -> None:
    stub.routes[f"POST /{command}"] = PLAN
    code, out, _ = uml(command, "big", "--dry-run")
    assert code == 0
    assert "tiny" in out and "200.0 MiB" in out and "400.0 MiB" in out and "1.5 s" in out
    assert stub.bodies(f"POST /{command}")[0]["dry_run"] is True


def test_dry_run_of_what_does_not_fit_fails(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /load"] = PLAN | {"fits": False, "victims": [], "reason": "too large"}
    code, out, _ = uml("load", "big", "--dry-run")
    assert code == 1 and "too large" in out


def test_unload_prints_the_receipt(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /unload"] = {"receipts": [RECEIPT]}
    code, out, _ = uml("unload", "tiny")
    assert code == 0
    assert re.search(r"tiny.*180\.0 MiB.*12 ms.*1 process ended.*verified", out)


def test_unload_fails_when_memory_did_not_come_back(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /unload"] = {"receipts": [RECEIPT | {"verified": "no"}]}
    code, out, _ = uml("unload", "--all")
    assert code == 1 and "NOT verified" in out
    assert stub.bodies("POST /unload")[0] == {"all": True}


def test_swap_prints_receipts_and_the_new_model(stub: Stub, uml: Uml) -> None:
    done = {"model": "big", "receipts": [RECEIPT], "load_s": 0.5, "total_s": 0.6}
    stub.routes["POST /swap"] = Sse(data(done | {"worker": WORKER | {"model": "big"}}, "done"))
    code, out, _ = uml("swap", "big")
    assert code == 0
    assert out.index("tiny") < out.index("big") and "600 ms" in out


def test_logs_are_printed_as_they_are(stub: Stub, uml: Uml) -> None:
    stub.routes["GET /logs"] = b"one\ntwo\n"
    code, out, _ = uml("logs")
    assert code == 0 and out == "one\ntwo\n"


def test_rm_deletes_through_the_supervisor(stub: Stub, uml: Uml) -> None:
    stub.routes["DELETE /v1/models/tiny"] = {"id": "tiny", "deleted": True}
    code, out, _ = uml("rm", "tiny")
    assert code == 0 and "tiny" in out


def test_rm_of_a_loaded_model_says_what_to_do(stub: Stub, uml: Uml) -> None:
    error = errors.Conflict("tiny is loaded")
    stub.routes["DELETE /v1/models/tiny"] = (409, error.to_openai())
    code, _, err = uml("rm", "tiny")
    assert code == 1
    assert err.splitlines()[0] == "error: tiny is loaded" and "unload" in err


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def chunk(text: str) -> str:
    return data({"choices": [{"index": 0, "delta": {"content": text}}]})


@pytest.fixture
def talker(stub: Stub) -> Stub:
    stub.routes["POST /load"] = Sse(data(WORKER, "done"))
    stub.routes["POST /v1/chat/completions"] = lambda body: Sse(
        chunk("hel"), chunk("lo"), data({"choices": [], "usage": USAGE}), DONE
    )
    stub.routes["POST /v1/completions"] = lambda body: Sse(
        data({"choices": [{"index": 0, "text": " world"}]}), DONE
    )
    return stub


def test_run_streams_the_answer(talker: Stub, uml: Uml) -> None:
    code, out, _ = uml(
        *("run", "tiny", "say hello", "--system", "be kind", "--max-tokens", "5"),
        *("--temperature", "0", "--seed", "7"),
    )
    assert (code, out) == (0, "hello\n")
    (sent,) = talker.bodies("POST /v1/chat/completions")
    assert sent["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "say hello"},
    ]
    assert (sent["max_tokens"], sent["temperature"], sent["seed"]) == (5, 0, 7)


def test_run_verbose_reports_speed(talker: Stub, uml: Uml) -> None:
    code, out, err = uml("run", "tiny", "hi", "--verbose")
    assert (code, out) == (0, "hello\n")
    assert re.search(r"9 tokens in, 2 out, first after \d+ ms", err)


def test_run_that_breaks_off_fails(talker: Stub, uml: Uml) -> None:
    body = errors.WorkerDied("the worker died").to_openai()
    talker.routes["POST /v1/chat/completions"] = Sse(chunk("hel"), data(body))
    code, out, err = uml("run", "tiny", "hi")
    assert code == 1 and out.startswith("hel") and "error: the worker died" in err


def test_an_unknown_model_is_one_line_and_a_hint(stub: Stub, uml: Uml) -> None:
    error = errors.ModelNotFound("no model 'tyni'; did you mean tiny?")
    stub.routes["POST /load"] = (404, error.to_openai())
    code, _, err = uml("load", "tyni")
    assert code == 1
    assert err.splitlines()[0] == "error: no model 'tyni'; did you mean tiny?"
    assert len(err.splitlines()) <= 2


CHANGES = {
    "path": "/etc/uml.toml",
    "changes": [
        {"key": "keep_alive", "old": 300.0, "new": 600.0, "takes": "now"},
        {"key": "port", "old": 1, "new": 2, "takes": "start"},
        {"key": 'models."tiny".n_ctx', "old": None, "new": 512, "takes": "start"},
    ],
    "restarts": [{"model": "tiny", "because": ["n_ctx"], "busy": 2}],
}


def test_config_diff_says_what_a_reload_would_do(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /config/reload"] = CHANGES | {"applied": False}
    code, out, _ = uml("config", "diff")
    assert code == 0 and stub.bodies("POST /config/reload") == [{"dry_run": True}]
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["keep_alive"].split()[1:3] == ["300", "600"] and "at once" in rows["keep_alive"]
    assert "with the next start" in rows["port"]
    assert "with the model's next load" in rows['models."tiny".n_ctx']
    assert "tiny would be loaded again after 2 running answers: n_ctx" in out


def test_config_diff_of_another_file_sends_its_text(stub: Stub, uml: Uml, tmp_path: Path) -> None:
    stub.routes["POST /config/reload"] = CHANGES | {"applied": False}
    (tmp_path / "new.toml").write_text("port = 2")
    assert uml("config", "diff", str(tmp_path / "new.toml"))[0] == 0
    assert stub.bodies("POST /config/reload") == [{"dry_run": True, "toml": "port = 2"}]
    code, _, err = uml("config", "diff", "nowhere.toml")
    assert code == 1 and "nowhere.toml" in err


def test_config_reload_does_it(stub: Stub, uml: Uml) -> None:
    stub.routes["POST /config/reload"] = CHANGES | {"applied": True}
    code, out, _ = uml("config", "reload")
    assert code == 0 and stub.bodies("POST /config/reload") == [{}]
    assert "tiny is loaded again" in out
    stub.routes["POST /config/reload"] = {"changes": [], "restarts": [], "applied": True}
    code, out, err = uml("config", "reload")
    assert (code, out) == (0, "") and "no difference" in err


def test_config_reload_of_a_bad_file_says_why(stub: Stub, uml: Uml) -> None:
    wrong = {"code": "invalid_config", "message": "prt is not a key; did you mean port?"}
    stub.routes["POST /config/reload"] = (400, {"error": wrong})
    code, _, err = uml("config", "reload")
    assert code == 1 and "did you mean port?" in err
