"""Starting a supervisor that outlives this command, and waiting until it answers."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor.cli import remote
from uml.supervisor.cli.failures import Failure
from uml.supervisor.log_file import log_path

#: A start takes a second or two; a machine that swaps takes longer.
_DEADLINE_S = 60.0
_LISTENING = re.compile(rb"^listening on (http\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Started:
    """A supervisor in the background. url: where it answers. log: the file it writes to."""

    url: str
    pid: int
    log: Path


def start(home: Path, options: Sequence[str], deadline_s: float = _DEADLINE_S) -> Started:
    """Run `serve` with `options` in a session of its own; returns once it answers.

    Raises: Failure with the end of its log when it ends or stays silent.
    """
    log = log_path(home)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        begin = sink.tell()
        process = subprocess.Popen(
            [*ourselves(), "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    end = time.monotonic() + deadline_s
    try:
        while True:
            url = _url(log, begin)
            if url and _answers(url):
                return Started(url, process.pid, log)
            code = process.poll()
            if code is not None:
                raise Failure(_cause(log, begin, f"the supervisor ended with code {code}"))
            if time.monotonic() > end:
                raise Failure(_cause(log, begin, f"no answer within {deadline_s:.0f} s"))
            time.sleep(0.05)
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ourselves() -> list[str]:
    """The command that runs this program."""
    entry = Path(__file__).resolve().parents[2] / "run.py"
    if entry.exists():
        return [sys.executable, str(entry)]
    return [sys.executable, "-m", "uml.supervisor.cli"]


def _url(log: Path, begin: int) -> str | None:
    found = _LISTENING.search(_written(log, begin))
    return found[1].decode() if found else None


def _written(log: Path, begin: int) -> bytes:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read(1 << 20)


def _answers(url: str) -> bool:
    from uml.protocol.errors import UmlError
    from uml.supervisor.client import Client

    try:
        remote.health(Client(url, timeout=5))
    except UmlError:
        return False
    return True


def _cause(log: Path, begin: int, what: str) -> str:
    """What happened, in the supervisor's own words when it said some."""
    lines = _written(log, begin).decode(errors="replace").strip().splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return said[-1]
    last = f": {' | '.join(lines[-3:])}" if lines else ""
    return f"{what}{last} (log: {log})"
