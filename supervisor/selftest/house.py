"""A supervisor of the selftest's own: its home, its settings, its process.

The home is temporary. Backends, plugins and models are the user's, seen through links and settings
and never written to; the address is a free one, so that a supervisor that runs is not disturbed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uml.protocol.errors import UmlError
from uml.supervisor.client_async import AsyncClient
from uml.supervisor.config import Config

FAKES = ("ping", "pong")

#: Counted in looks, not by the clock: a machine that slept has lost no time.
_START_S, _END_S, _POLL_S = 60.0, 45.0, 0.01
_CONTEXT, _SLOTS = 1024, 4
#: Shorter than usual, so that a run is changes of model rather than waiting for them.
_MAX_WAIT_S = 1.0
_LISTENING = re.compile(rb"^listening on (http\S+)", re.MULTILINE)
_MB = 1 << 20
#: There is room for one of the two on the device, and each gives its bytes back in another way.
_FAKE_BYTES = {"ping": 10 * _MB, "pong": 16 * _MB}
_FAKE_DEVICE_BYTES = 24 * _MB
_FAKE_OPTIONS: dict[str, dict[str, Any]] = {
    "ping": {"spawn_child": "setsid", "late_release": 0.03},
    "pong": {"falling_release": 0.05},
}
_FAKE_PACE = {"token_delay": 0.01, "slow_load": 0.1}


class Broken(UmlError):
    """The selftest cannot go on."""


class House:
    """command: what starts `serve`. models: ids of the user's, or `FAKES`. Not a context manager:
    `end` stops the supervisor, `remove` the home."""

    def __init__(self, config: Config, command: Sequence[str], models: Sequence[str]) -> None:
        self._command = list(command)
        self._config = config
        self.models = tuple(models)
        self.fake = self.models == FAKES
        self.home = Path(tempfile.mkdtemp(prefix="uml-selftest-")).resolve()
        #: How many supervisors were started, and how many of them were killed.
        self.life = self.killed = 0
        self._counted = self._lines = 0
        self.client = AsyncClient()
        self._clients = [self.client]
        self._process: subprocess.Popen[bytes] | None = None
        self._up = asyncio.Event()
        self._segments = self._furnish()

    # --- the home --------------------------------------------------------------------------

    def _furnish(self) -> Path | None:
        """Settings, links, fake models; the folder of the fake device."""
        config, segments = self._config, None
        settings: dict[str, Any] = {
            "home": str(self.home),
            "port": 0,
            "max_loaded": 1,
            "keep_alive": 600,
            "max_wait": _MAX_WAIT_S,
            "min_residency": _MAX_WAIT_S / 2,
            "conversations": 0,
            "scan_default_stores": config.scan_default_stores and not self.fake,
            "model_dirs": [] if self.fake else [str(config.home / "models")],
        }
        if self.fake:
            shared = Path("/dev/shm")
            where = shared if shared.is_dir() else self.home
            segments = Path(tempfile.mkdtemp(prefix=f"uml-selftest-{os.getpid()}-", dir=where))
            settings["fake_device"] = f"fake0:{_FAKE_DEVICE_BYTES}:{segments}"
            del settings["max_loaded"]  # the device itself has room for one
            (self.home / "models").mkdir()
            for name in FAKES:
                self._fake_model(name)
        else:
            settings["model_dirs"] += [str(folder) for folder in config.model_dirs]
            settings["budget"], settings["reserve"] = config.budget, config.reserve_bytes
            for folder in ("backends", "plugins"):
                self._link(folder)
        lines = [f"{key} = {_toml(value)}" for key, value in settings.items()]
        for model in () if self.fake else self.models:
            own = {"n_ctx": _CONTEXT, "slots": _SLOTS}
            backend = config.for_model(model).backend
            lines += [f"[models.{_toml(model)}]", *(f"{k} = {v}" for k, v in own.items())]
            lines += [f"backend = {_toml(backend)}"] if backend else []
        (self.home / "uml.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return segments

    def _fake_model(self, name: str) -> None:
        facts = {
            "name": name,
            "device": "fake0",
            "weights_bytes": _FAKE_BYTES[name],
            "options": _FAKE_PACE | _FAKE_OPTIONS[name],
        }
        (self.home / "models" / f"{name}.fake.json").write_text(json.dumps(facts))

    def _link(self, folder: str) -> None:
        (self.home / folder).mkdir()
        for entry in (self._config.home / folder).glob("[!.]*"):
            (self.home / folder / entry.name).symlink_to(entry.resolve())

    def remove(self, *, logs: bool = True) -> None:
        """What it needed; the fake device's bytes are RAM and go in any case, logs only if told."""
        if logs:
            shutil.rmtree(self.home, ignore_errors=True)
        if self._segments:
            shutil.rmtree(self._segments, ignore_errors=True)

    # --- the process -----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Broken("the selftest's supervisor does not run")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.home / "supervisor.log"

    async def start(self) -> None:
        """Start it and wait until it listens. Raises: Broken."""
        begin = self._spawn()
        for _ in range(int(_START_S / _POLL_S)):
            found = _LISTENING.search(self._written(begin))
            if found or self._ended():
                break
            await asyncio.sleep(_POLL_S)
        if not found:
            raise Broken(f"the selftest's supervisor did not start: {self._last_words()}")
        self.client = AsyncClient(found[1].decode())
        self._clients.append(self.client)  # requests to the last one may be under way
        self.life += 1
        self._up.set()

    def _spawn(self) -> int:
        """Start the process; where in the log its words begin."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("UML_")}
        if cache := os.environ.get("UML_CACHE"):
            environ["UML_CACHE"] = cache
        # Should the selftest itself be killed, its supervisor goes too. Source: setpriv(1).
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        with self.log.open("ab") as sink:
            begin = self._counted = sink.tell()
            self._lines = 0
            self._process = subprocess.Popen(
                [*prefix, *self._command, "serve", f"--config={self.home / 'uml.toml'}"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        return begin

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _written(self, begin: int) -> bytes:
        with self.log.open("rb") as f:
            f.seek(begin)
            return f.read(1 << 16)

    def lines(self) -> int:
        """How many this supervisor has written to its log so far."""
        with self.log.open("rb") as f:
            f.seek(self._counted)
            for line in f:
                self._counted += len(line)
                self._lines += 1
        return self._lines

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"

    def kill(self) -> None:
        """SIGKILL the supervisor, and it alone."""
        self._up.clear()
        self.killed += 1
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    async def up(self) -> None:
        """Wait until a supervisor listens (again)."""
        await self._up.wait()

    async def end(self, *, force: bool = False) -> int | None:
        """End it as a user does, by SIGTERM; its exit code. force: kill it."""
        for client in self._clients:
            await client.close()
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(signal.SIGKILL if force else signal.SIGTERM)
        for _ in range(int(_END_S / _POLL_S)):
            if process.poll() is not None:
                return process.returncode
            await asyncio.sleep(_POLL_S)
        process.kill()
        return process.wait()


def _toml(value: Any) -> str:
    """A value in TOML; texts, numbers and lists are written as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
