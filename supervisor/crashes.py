"""Crash reports: what was known when a worker failed, as a file a person can read and pass on.

`UML_HOME/crashes/<time>-<model>.json`, readable for its owner alone; the last ones are kept. A
report holds what was loaded and how, versions, the end of stderr, the devices and workers at that
moment, and the events before it. Requests and answers are not in it, and what looks like a secret
is masked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.protocol import __version__
from uml.protocol.errors import UmlError

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool

#: Reports that are kept, in all and of one model.
_KEPT, _OF_ONE = 20, 5
_STDERR_LINES, _EVENTS = 200, 100
_SECRET_NAMES = re.compile(
    r"(?i)(^|[_-])(key|apikey|token|secret|passw(or)?d|credentials?|authorization)$"
)
_SECRETS = re.compile(
    r"(?i)\b(?:sk|hf|ghp|gho|xox[bp])[-_][A-Za-z0-9_-]{16,}|(?<=bearer )\S+|(?<=://)[^/@\s]+(?=@)"
)
_MASK = "***"


class Crashes:
    """Notes at a worker's failure what is true then, and writes it down once it is gone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._folder = pool.config.home / "crashes"
        self._noted: dict[str, tuple[UmlError, dict[str, Any]]] = {}

    def note(self, worker_id: str, error: UmlError) -> None:
        """A worker failed of `error`, whose detail gets the last 50 lines of its stderr."""
        pool = self._pool
        state, vital = pool.scheduler.workers[worker_id], pool.crew.vitals.get(worker_id)
        need, model = state.need, pool.serving.models.get(state.model or "")
        now = time.time()
        error.detail["stderr"] = pool.crew.tail(worker_id, "", 50)
        self._noted[worker_id] = (
            error,
            {
                "at": now,
                "time": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)),
                "cause": error.message,
                "code": error.code,
                "model": state.model,
                "worker": worker_id,
                "state": state.state.value,
                "stage": vital.stage if vital else "",
                "busy": len(state.busy),
                "load_s": vital.load_s if vital else None,
                "files": list(model.file.paths) if model else [],
                "content_hash": model.content_hash if model else "",
                "options": need.options if need else {},
                "lease_bytes": need.bytes if need else {},
                "arithmetic": need.arithmetic if need else "",
                "facts": vital.facts if vital else {},
                "versions": {
                    "uml": __version__,
                    "python": platform.python_version(),
                    "system": platform.platform(),
                    state.backend: vital.versions if vital else {},
                },
                "devices": [asdict(d) for d in pool.machine.snapshot()],
                "workers": [
                    {"worker": w.id, "model": w.model, "state": w.state.value, "busy": len(w.busy)}
                    for w in pool.scheduler.workers.values()
                ],
                "events": list(pool.events.recent)[-_EVENTS:],
            },
        )

    async def write(self, worker_id: str) -> UmlError | None:
        """The report of a worker that is gone now, if it failed; of what it failed."""
        noted = self._noted.pop(worker_id, None)
        if noted is None:
            return None
        error, report = noted
        stderr = self._pool.crew.tail(worker_id, "", _STDERR_LINES)
        error.detail["stderr"] = stderr[-50:]  # what it said last has arrived only now
        key = self._pool.config.api_key
        masked = _masked(report | {"stderr": stderr}, [key] if key else [])
        path = self._folder / f"{_stamp(report['at'])}-{_file_name(report['model'])}.json"
        try:
            await asyncio.to_thread(self._save, path, masked)
        except OSError as e:
            self._pool.events.emit("crash.not_written", "warning", path=str(path), error=str(e))
        else:
            error.detail["report"] = str(path)
            self._pool.events.emit("crash.written", model=report["model"], path=str(path))
        return error

    def _save(self, path: Path, report: dict[str, Any]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            json.dump(report, f, indent=2, default=str)
        temporary.replace(path)
        found = sorted(self._folder.glob("*.json"))
        same = [p for p in found if _of_model(p) == _of_model(path)][:-_OF_ONE]
        others = [p for p in found if p not in same]
        for old in (*same, *others[:-_KEPT]):
            old.unlink(missing_ok=True)


def last(home: Path, model_id: str) -> dict[str, Any] | None:
    """What the newest report of a model says in short: `at`, `cause`, `report` (its path)."""
    name = _file_name(model_id)
    for path in sorted((home / "crashes").glob("*.json"), reverse=True):
        if _of_model(path) == name:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(path.read_text())
                if found["model"] == model_id:
                    return {"at": found["at"], "cause": found["cause"], "report": str(path)}
    return None


def _stamp(at: float) -> str:
    """Sorts by time; without a dash but the one between day and time."""
    day = time.strftime("%Y%m%d-%H%M%S", time.localtime(at))
    return f"{day}.{int(at * 1000) % 1000:03}"


def _file_name(model_id: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", model_id or "no-model")[:100]


def _of_model(path: Path) -> str:
    """Of `20261128-001500.123-name.json`, the name."""
    return path.stem.split("-", 2)[-1]


def _masked(value: Any, secrets: Iterable[str]) -> Any:
    """Without what looks like a secret, by its name or by itself."""
    if isinstance(value, dict):
        return {
            k: _MASK if _SECRET_NAMES.search(str(k)) and v else _masked(v, secrets)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked(v, secrets) for v in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, _MASK)
        return _SECRETS.sub(_MASK, value)
    return value
