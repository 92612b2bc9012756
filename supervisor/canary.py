"""Sends a worker ahead to see whether an environment works, and kills it afterwards.

It is the real worker, started the real way. With a model it has to decode a token, which is
where a library built for the wrong processor dies; without one the library is only imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uml.protocol.errors import LoadFailed, Stalled, UmlError, from_wire
from uml.protocol.frames import Decoder
from uml.protocol.messages import Error, Hello, Load, Message, Ready, pack, parse
from uml.protocol.models import BackendSpec
from uml.supervisor.formats import files

WORKER_MAIN = Path(__file__).resolve().parent.parent / "workers" / "__main__.py"
#: Lines of the worker's stderr that go into an error.
_TAIL = 15


class _Ended(LoadFailed):
    """Its end of the pipe closed."""


def run_canary(
    python: str, spec: BackendSpec, model: Path | None = None, timeout_s: float = 120.0
) -> dict[str, str]:
    """Versions the library gave of itself. When this returns, the whole process group is dead.

    model: a file to decode one token with. Raises: UmlError with the worker's last lines.
    """
    command = [python, "-I", "-u", str(WORKER_MAIN), spec.worker]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environ(spec.environ),
            start_new_session=True,
        )
        try:
            return _ask(process, model, time.monotonic() + timeout_s)
        except UmlError as e:
            # One that is dying gets the time to say of what.
            _end(process, grace_s=5.0 if isinstance(e, _Ended) else 0.0)
            raise LoadFailed(_explain(e.message, process.returncode, _tail(stderr))) from e
        finally:
            _end(process, grace_s=0.0)


def _ask(process: subprocess.Popen[bytes], model: Path | None, deadline: float) -> dict[str, str]:
    decoder, versions = Decoder(), dict[str, str]()
    while True:
        for message in _read(process, decoder, deadline):
            if isinstance(message, Hello):
                versions = message.versions
                if model is None:
                    return versions
                _write(
                    process, Load(model.stem, list(files(str(model))), {"n_ctx": 256, "slots": 1})
                )
            elif isinstance(message, Ready):
                return versions
            elif isinstance(message, Error):
                raise from_wire(message.error)


def _read(process: subprocess.Popen[bytes], decoder: Decoder, deadline: float) -> list[Message]:
    """What the worker said since the last call. Raises: UmlError when it ends or says nothing."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Stalled("the canary gave no answer in time")
        data = os.read(fd, 65536)
        if not data:
            raise _Ended("the canary ended before it was ready")
        if frames := decoder.feed(data):
            return [parse(frame) for frame in frames]


def _write(process: subprocess.Popen[bytes], message: Message) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(pack(message))
        process.stdin.flush()
    except BrokenPipeError:
        raise _Ended("the canary ended before it took the model") from None


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Kill the group, children included, and reap."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _explain(what: str, code: int | None, tail: str) -> str:
    if code is not None and code < 0 and -code != signal.SIGKILL:
        name = signal.Signals(-code).name
        what += f": died of {name}"
        if -code == signal.SIGILL:
            what += " (built for instructions this processor does not execute)"
    return f"{what}\n{tail}" if tail else what


def _tail(stderr: Any) -> str:
    stderr.seek(0)
    text = stderr.read()[-16384:].decode(errors="replace")
    return "\n".join(text.splitlines()[-_TAIL:])


def _environ(extra: Mapping[str, str]) -> dict[str, str]:
    """Built, not copied: a worker inherits no secret of ours."""
    keep = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    return {k: os.environ[k] for k in keep if k in os.environ} | dict(extra)
