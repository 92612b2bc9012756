"""The supervisor as a whole: made from a configuration, started, served, ended.

Ending: the first SIGINT or SIGTERM (or POST /shutdown) refuses new work, lets running answers
finish for `drain_s` and then kills every worker; a second signal kills at once. Either way no
process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TextIO

from aiohttp import web

from uml.plugins.loader import load_plugins
from uml.protocol import __version__
from uml.protocol.errors import UmlError
from uml.supervisor import port
from uml.supervisor.api.gate import Gate
from uml.supervisor.api.gateway import Gateway
from uml.supervisor.api.routes import MAX_BODY_BYTES, make_app
from uml.supervisor.checks import check
from uml.supervisor.config import Config, ConfigError, cache_dir, config_files
from uml.supervisor.environments import Environments
from uml.supervisor.events import Events
from uml.supervisor.filewatch import FileWatch
from uml.supervisor.log_file import LogFile, log_path
from uml.supervisor.machine import Machine
from uml.supervisor.pool import Pool
from uml.supervisor.registry import Registry
from uml.supervisor.reload import Reloading, Reread
from uml.supervisor.spool import Spool

#: How long handlers may take to say goodbye once all workers are gone.
_GOODBYE_S = 2.0
#: Enough for thousands of open streams; the usual soft limit is 1024.
_FILES = 65536


class Supervisor:
    """All parts of one server. `start`, then `end`; both once.

    log: where lines go, None = nowhere. max_body_bytes: of a JSON body. reread: gives the
    configuration as it is now, for reloads.
    Raises: ConfigError when the configuration cannot be served.
    """

    def __init__(
        self,
        config: Config,
        *,
        log: TextIO | None = sys.stderr,
        max_body_bytes: int = MAX_BODY_BYTES,
        reread: Reread | None = None,
    ) -> None:
        check(config)
        self._max_body_bytes = max_body_bytes
        self.events = Events(log, config.log_format, config.log_level)
        loaded = load_plugins(config.home)
        for plugin in (p for p in loaded.plugins if p.error):
            self.events.emit("plugin.failed", "warning", plugin=plugin.name, error=plugin.error)
        self.registry = Registry(config.home / "registry.sqlite", config, loaded.specs)
        if self.registry.set_aside:
            self.events.emit("registry.set_aside", "warning", path=str(self.registry.set_aside))
        self._machine = Machine(config.fake_device)
        environments = Environments(config.home, cache_dir(), loaded.specs)
        self.pool = Pool(
            config, self.registry, environments, loaded.specs, self._machine, self.events
        )
        gate = Gate(config.host, config.api_key, config.allowed_hosts, config.allowed_origins)
        spool = Spool(config.home / "spool", config.spool_bytes)
        self.gateway = Gateway(config, self.registry, self.pool, self.events, gate, spool)
        self.gateway.reloading = self._reloading = Reloading(self.gateway, reread)
        self._watch: FileWatch | None = None
        self._runner: web.AppRunner | None = None
        self._preloading: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; the address. Raises: AlreadyRunning, PortTaken, ConfigError."""
        config = self.config
        sock = port.listen(config.host, config.port)
        try:
            await self.pool.start()
            self.registry.rescan()  # reading many headers for the first time takes a while
            app = make_app(self.gateway, max_body_bytes=self._max_body_bytes)
            runner = web.AppRunner(
                app, handler_cancellation=True, access_log=None, shutdown_timeout=_GOODBYE_S
            )
            await runner.setup()
            self._runner = runner
            self.gateway.url = port.url(config.host, sock)
            await web.SockSite(runner, sock, backlog=1024).start()
        except BaseException:
            sock.close()
            raise
        self.events.emit("supervisor.started", url=self.gateway.url, version=__version__)
        self._preloading = asyncio.create_task(self._preload())
        self._watch = FileWatch(config_files(config), self._file_changed)
        return self.gateway.url

    @property
    def config(self) -> Config:
        """What is in force."""
        return self.gateway.config

    def _file_changed(self) -> None:
        if self.config.reload_on_change:
            self.reload("its file changed")

    def reload(self, cause: str) -> None:
        """Take the configuration in anew; what is wrong with it is told as an event."""
        if self.gateway.stopping:
            return
        with contextlib.suppress(ConfigError):
            self._reloading.reload(cause)

    async def _preload(self) -> None:
        """Load what the configuration names, one after the other; a failure stops nobody."""
        for name in self.config.preload:
            try:
                await self.pool.commands.load(self.registry.find(name))
            except UmlError as e:
                self.events.emit("preload.failed", "error", model=name, error=e.message)
        self.gateway.ready = True

    async def end(self, drain_s: float | None) -> None:
        """Refuse new work, wait up to `drain_s` (None: as long as it takes) for running answers,
        kill all workers, close. May be called again with 0 when a longer call was cancelled."""
        self.gateway.stopping = True
        if self._preloading:
            self._preloading.cancel()
        if self._watch:
            self._watch.close()
        await self.pool.close(drain_s)
        self.gateway.closed.set()
        if self._runner:
            await self._runner.cleanup()
        self.registry.close()
        self._machine.close()
        self.events.emit("supervisor.ended")


async def run(
    config: Config, announce: Callable[[str], None], reread: Reread | None = None
) -> None:
    """Serve until told to end. announce: told the address once it answers."""
    supervisor = Supervisor(config, reread=reread)
    loop, gateway = asyncio.get_running_loop(), supervisor.gateway
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _told_to_end, gateway)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
    loop.add_signal_handler(signal.SIGHUP, _hung_up, supervisor, _has_terminal() and not ignored)
    _raise_file_limit()
    try:
        announce(await supervisor.start())
    except BaseException:
        await supervisor.end(0)
        raise
    await gateway.stop.wait()
    started, drain_s = time.monotonic(), supervisor.config.drain_s
    gateway.events.emit("supervisor.stopping", force=gateway.force, drain_s=drain_s)
    gateway.stop.clear()
    if not gateway.force:
        ending = asyncio.create_task(supervisor.end(drain_s if drain_s >= 0 else None))
        again = asyncio.create_task(gateway.stop.wait())
        await asyncio.wait((ending, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if ending.done():
            ending.result()
            return
        waited = round(time.monotonic() - started, 3)
        gateway.events.emit("supervisor.forced", "warning", waited_s=waited)
        ending.cancel()
        await asyncio.wait((ending,))
    await supervisor.end(0)


def _told_to_end(gateway: Gateway) -> None:
    gateway.stop.set()


def _hung_up(supervisor: Supervisor, with_terminal: bool) -> None:
    """SIGHUP: reload, or, when the terminal that we live with was closed, end."""
    if with_terminal and not _has_terminal():
        supervisor.gateway.stop.set()
    else:
        supervisor.reload("SIGHUP")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def serve(config: Config, *, headless: bool = False, reread: Reread | None = None) -> int:
    """Run in the foreground until a signal; the exit code. The first line on stdout is
    `listening on URL`. headless: without a web page. reread: gives the configuration as it is
    now, for reloads.

    Raises: AlreadyRunning, PortTaken, ConfigError.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_with_bounded_log(run(config, _announce, reread), log_path(config.home)))
    return 0


async def _with_bounded_log(work: Coroutine[None, None, None], path: Path) -> None:
    watching = asyncio.create_task(LogFile(path).watch())
    try:
        await work
    finally:
        watching.cancel()


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)


def _raise_file_limit() -> None:
    """Every stream is a file. Source: getrlimit(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
