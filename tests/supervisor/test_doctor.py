from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from uml.supervisor import doctor as module
from uml.supervisor import installer, machine, tree, wheels
from uml.supervisor.config import Config, load_config
from uml.supervisor.doctor import Check, doctor, exit_code


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(load_config(env={}), home=tmp_path / "home", port=0)


def find(config: Config, name: str) -> list[Check]:
    return [check for check in doctor(config) if check.name == name]


def test_doctor_looks_at_everything_it_promises(config: Config) -> None:
    names = {check.name for check in doctor(config)}
    assert names >= {
        *("configuration", "python", "environments by", "compiler", "processor", "openmp", "home"),
        *("cache", "memory", "gpu", "port", "backend llama_cpp", "models", "pid namespaces"),
    }
    assert not any("could not be looked at" in check.what for check in doctor(config))


def test_every_fault_comes_with_a_fix(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "compiler", lambda: None)
    monkeypatch.setattr(installer, "has_venv", lambda: False)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    monkeypatch.setattr(tree, "namespace_prefix", lambda: ())
    checks = doctor(replace(config, model_dirs=(Path("/no/such/folder"),)))
    faults = [check for check in checks if check.level != "ok"]
    assert {c.name for c in faults} >= {"compiler", "environments by", "pid namespaces", "models"}
    assert all(check.fix for check in faults)
    assert exit_code(checks) == 1


def test_exit_code_is_for_failures_alone() -> None:
    assert exit_code([Check("a", "ok", ""), Check("b", "warn", "")]) == 0
    assert exit_code([Check("a", "ok", ""), Check("b", "fail", "")]) == 1


def test_look_that_breaks_hides_no_other(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no /proc")

    monkeypatch.setattr(machine, "ram", broken)
    (memory,) = find(config, "memory")
    assert memory.level == "warn" and "no /proc" in memory.what
    assert find(config, "python")


def test_missing_compiler_does_not_matter_once_installed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "compiler", lambda: None)
    assert find(config, "compiler")[0].level == "fail"
    monkeypatch.setattr(wheels, "is_cached", lambda *_: True)
    assert find(config, "compiler")[0].level == "ok"


def test_amx_is_named_as_left_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module.build_flags, "read_cpu_flags", lambda _: frozenset({"amx_tile", "avx2"})
    )
    (processor,) = find(config, "processor")
    assert "AMX" in processor.what and "left out" in processor.what


def test_taken_port_says_by_whom(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"pid {os.getpid()}" in module.port_holder(port)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(self.server.body).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def health() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("body", "level", "says"),
    [
        ({"service": "uml", "status": "ok"}, "ok", "running uml"),
        ({"status": "ok"}, "fail", "pid"),
        ([], "fail", "pid"),
    ],
)
def test_port_taken_by_ourselves_is_no_fault(
    config: Config, health: http.server.HTTPServer, body: object, level: str, says: str
) -> None:
    health.body = body  # type: ignore[attr-defined]
    (check,) = find(replace(config, port=health.server_port), "port")
    assert check.level == level and says in check.what


def test_broken_plugin_is_a_warning(config: Config) -> None:
    folder = config.home / "plugins" / "odd"
    folder.mkdir(parents=True)
    (folder / "spec.py").write_text("1/0")
    (check,) = find(config, "plugin odd")
    assert check.level == "warn" and "ZeroDivisionError" in check.what
