"""The server as a process: its first line, its end, its port, its size."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.supervisor.served import put_model
from uml.supervisor import port
from uml.supervisor.app import Supervisor
from uml.supervisor.config import ConfigError, load_config
from uml.supervisor.port import AlreadyRunning, PortTaken

CHECKOUT = Path(__file__).resolve().parents[2]
START = f"""
import sys, types
package = types.ModuleType("uml")
package.__path__ = [{str(CHECKOUT)!r}]
sys.modules["uml"] = package
from uml.supervisor.app import serve
from uml.supervisor.config import load_config
sys.exit(serve(load_config(), reread=lambda text: load_config(text=text)))
"""


class Process:
    """A supervisor of its own. begin: run in its process first. lines: what it wrote to stderr."""

    def __init__(
        self, home: Path, begin: Callable[[], None] | None = None, **settings: str
    ) -> None:
        passed = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        given = {"home": str(home), "port": "0", "scan_default_stores": "false"} | settings
        env = passed | {f"UML_{k.upper()}": v for k, v in given.items()}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", START],
            env=env,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=begin,
        )
        self.lines: list[str] = []
        self._connections: list[http.client.HTTPConnection] = []
        self._responses: list[http.client.HTTPResponse] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        assert self.popen.stdout
        self.first_line = self.popen.stdout.readline()
        self.port = int(self.first_line.rpartition(":")[2] or 0)

    def _read(self) -> None:
        assert self.popen.stderr
        self.lines += self.popen.stderr

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self._connections.append(connection)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        self._responses.append(connection.getresponse())
        return self._responses[-1]

    def chat(self, text: str, **body: Any) -> http.client.HTTPResponse:
        messages = [{"role": "user", "content": text}]
        body = {"model": "alpha", "messages": messages} | body
        return self.ask("POST", "/v1/chat/completions", body)

    def status(self) -> Any:
        return json.loads(self.ask("GET", "/status").read())

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def close(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self.popen.poll() is None:
                self.ask("POST", "/shutdown", {"force": True})
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._reading.join()
        for closing in (*self._responses, *self._connections):
            closing.close()
        for stream in (self.popen.stdout, self.popen.stderr):
            assert stream
            stream.close()


@contextlib.contextmanager
def process(
    home: Path, begin: Callable[[], None] | None = None, **settings: str
) -> Iterator[Process]:
    put_model(home, "alpha")
    started = Process(home, begin, **settings)
    try:
        yield started
    finally:
        started.close()


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=5)[1]


def test_first_line_names_the_address_and_an_idle_server_is_small(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        assert server.first_line == f"listening on http://127.0.0.1:{server.port}\n"
        assert server.port > 0 and server.ask("GET", "/health").status == 200
        us = psutil.Process(server.popen.pid)
        assert us.memory_info().rss <= 60 << 20
        before = us.cpu_times()
        time.sleep(2)  # what is measured is that nothing happens
        after = us.cpu_times()
        assert after.user + after.system - before.user - before.system <= 0.02


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_a_running_answer_finish_and_leaves_no_process(
    tmp_path: Path, number: int
) -> None:
    with process(tmp_path) as server:
        response = server.chat("slow=0.02", max_tokens=40, stream=True)
        response.readline()
        tree = server.tree()
        assert tree
        server.popen.send_signal(number)
        rest = response.read().decode()
        assert '"tok39 "' in rest and rest.endswith("data: [DONE]\n\n")
        assert server.popen.wait(10) == 0
        assert gone(tree)
    assert any("supervisor.ended" in line for line in server.lines)


def test_second_signal_cuts_running_answers_at_once(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        response = server.chat("slow=0.02", max_tokens=100_000, stream=True)
        response.readline()
        tree = server.tree()
        server.popen.send_signal(signal.SIGTERM)
        while server.ask("GET", "/ready").status != 503:
            time.sleep(0.01)
        server.popen.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        assert '"error"' in rest.strip().splitlines()[-1] and "[DONE]" not in rest
        assert server.popen.wait(10) == 0
        assert gone(tree)


def test_hang_up_reloads_and_a_bad_file_ends_nothing(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        (tmp_path / "uml.toml").write_text("drain = 7\nlog_format = 'json'\n")
        for text, event in (("", "config.reloaded"), ("drain = soon\n", "config.refused")):
            if text:
                (tmp_path / "uml.toml").write_text(text)
            server.popen.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while not any(event in line and "SIGHUP" in line for line in server.lines):
                assert time.monotonic() < deadline, server.lines
                time.sleep(0.02)
        assert server.ask("GET", "/health").status == 200
        assert server.lines[-1].startswith("{"), "the log is JSON now"


@pytest.mark.parametrize("nohup", [False, True])
def test_closing_its_terminal_ends_a_server_unless_nohup_forbids(
    tmp_path: Path, nohup: bool
) -> None:
    master, slave = pty.openpty()

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with process(tmp_path, begin) as server:
        os.close(slave)
        os.close(master)
        if nohup:
            deadline = time.monotonic() + 10
            while not any("config.reloaded" in line for line in server.lines):
                assert time.monotonic() < deadline, server.lines
                time.sleep(0.02)
            assert server.ask("GET", "/health").status == 200
        else:
            assert server.popen.wait(10) == 0


def test_drain_ends_after_its_time(tmp_path: Path) -> None:
    with process(tmp_path, drain="200ms") as server:
        response = server.chat("slow=0.02", max_tokens=100_000, stream=True)
        response.readline()
        server.popen.send_signal(signal.SIGTERM)
        assert '"error"' in response.read().decode().strip().splitlines()[-1]
        assert server.popen.wait(10) == 0


def test_shutdown_over_http_ends_the_process(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        server.chat("x", max_tokens=1).read()
        tree = server.tree()
        assert server.ask("POST", "/shutdown").status == 202
        assert server.popen.wait(10) == 0
        assert gone(tree)


def test_shutdown_with_force_does_not_wait(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        response = server.chat("slow=0.02", max_tokens=100_000, stream=True)
        response.readline()
        assert server.ask("POST", "/shutdown").status == 202
        assert server.ask("POST", "/shutdown").status == 202
        assert server.popen.poll() is None, "asking twice is not forcing"
        assert server.ask("POST", "/shutdown", {"force": True}).status == 202
        response.read()
        assert server.popen.wait(10) == 0


def test_killed_supervisor_leaves_no_worker(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        response = server.chat("slow=0.02", max_tokens=100_000, stream=True)
        response.readline()
        tree = server.tree()
        server.popen.kill()
        assert not psutil.wait_procs(tree, timeout=2)[1]
        response.close()


async def test_port_of_another_supervisor_is_recognised(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        given = {"home": str(tmp_path), "port": server.port, "scan_default_stores": False}
        second = Supervisor(load_config(env={}, overrides=given), log=None)
        with pytest.raises(AlreadyRunning) as caught:
            await second.start()
        await second.end(0)
        assert caught.value.detail["pid"] == server.popen.pid
        assert f"http://127.0.0.1:{server.port}" in caught.value.message
        assert server.chat("x", max_tokens=1).status == 200


def test_port_of_a_stranger_is_named() -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(port, "_HELLO_S", 0.2)
            with pytest.raises(PortTaken, match=str(os.getpid())):
                port.listen("127.0.0.1", stranger.getsockname()[1])


def test_address_that_is_not_ours_names_the_key() -> None:
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(ConfigError) as caught:
            port.listen(host, 0)
        assert caught.value.param == "host"


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("0.0.0.0", "127.0.0.1")],
)
def test_address_shown_is_one_that_can_be_reached(host: str, shown: str) -> None:
    with port.listen(host, 0) as sock:
        number = sock.getsockname()[1]
        assert port.url(host, sock) == f"http://{shown}:{number}"
        with socket.create_connection((shown, number), timeout=5):
            pass


def test_corrupt_registry_is_set_aside(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "registry.sqlite").write_bytes(b"this is no database" * 100)
    with process(tmp_path) as server:
        assert json.loads(server.ask("GET", "/v1/models").read())["data"][0]["id"] == "alpha"
        server.popen.terminate()
        server.popen.wait(10)
    assert any("registry.set_aside" in line for line in server.lines)
