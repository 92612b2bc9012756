"""A whole supervisor with fake models, answering over HTTP inside the test's own event loop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from tests.supervisor.house import until
from uml.supervisor.app import Supervisor
from uml.supervisor.config import load_config


class Served:
    """url: where it answers. session: a client for it, JSON in and out."""

    def __init__(self, supervisor: Supervisor, url: str, session: aiohttp.ClientSession) -> None:
        self.supervisor, self.url, self.session = supervisor, url, session

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, parsed JSON or text, headers)."""
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        async with self.session.request(
            method, self.url + path, json=body, headers=names
        ) as response:
            raw = await response.text()
            try:
                return response.status, json.loads(raw), response.headers
            except ValueError:
                return response.status, raw, response.headers

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, answer, _ = await self.ask("POST", path, body, **headers)
        return status, answer

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, answer, _ = await self.ask("GET", path, **headers)
        return status, answer

    async def chat(self, text: str, model: str = "alpha", **body: Any) -> tuple[int, Any]:
        return await self.post("/v1/chat/completions", chat_body(text, model, **body))

    def busy(self) -> int:
        """Requests that hold a slot in some worker."""
        return sum(w["busy"] for w in self.supervisor.pool.status()["workers"])

    async def becomes_idle(self) -> None:
        await until(lambda: self.busy() == 0)


def chat_body(text: str, model: str = "alpha", **body: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]} | body


def events(raw: str) -> list[Any]:
    """The data of all events of a stream, parsed; "[DONE]" as it is."""
    data = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


def put_model(home: Path, name: str, **facts: Any) -> None:
    folder = home / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.fake.json").write_text(json.dumps({"name": name, **facts}))


@contextlib.asynccontextmanager
async def served(
    home: Path,
    *,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    max_body_bytes: int = 1 << 20,
    session_headers: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """files: name -> facts of a fake model. settings: keys of the configuration."""
    for name, facts in ({"alpha": {}} if files is None else files).items():
        put_model(home, name, **facts)
    given = {"home": str(home), "port": 0, "scan_default_stores": False} | settings
    config = load_config(env={}, overrides=given)
    supervisor = Supervisor(config, log=None, max_body_bytes=max_body_bytes)
    try:
        url = await supervisor.start()
        async with aiohttp.ClientSession(headers=session_headers) as session:
            yield Served(supervisor, url, session)
    finally:
        await supervisor.end(0)
