"""A whole house without a network: registry, environments, machine, pool, and fake models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from uml.plugins.loader import load_specs
from uml.protocol.tasks import Chat, Sampling
from uml.supervisor.config import load_config
from uml.supervisor.environments import Environments
from uml.supervisor.events import Events
from uml.supervisor.machine import Machine
from uml.supervisor.pool import Pool
from uml.supervisor.registry import Registry

MB = 1 << 20


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait for something to come to pass; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not come to pass"
        await asyncio.sleep(0.005)
    return value


def chat(text: str, max_tokens: int | None = 4) -> Chat:
    return Chat(
        messages=[{"role": "user", "content": text}],
        max_tokens=max_tokens,
        sampling=Sampling(seed=1),
    )


class Reader:
    """A sink that remembers, and can pretend to be slow."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, Any]] = []
        self.states: list[str] = []
        self.slow = False

    def waiting(self, state: str, fraction: float | None, position: int) -> None:
        self.states.append(state)

    def chunk(self, index: int, delta: Any) -> None:
        self.chunks.append((index, delta))

    def backlog(self) -> int:
        return 1 << 20 if self.slow else 0

    def restart(self, choices: range | None = None) -> bool:
        return False

    @property
    def text(self) -> str:
        return "".join(d for _, d in self.chunks if isinstance(d, str))


class House:
    """home: an empty UML_HOME. Settings as in the configuration file."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        settings.setdefault("scan_default_stores", False)
        self.config = load_config(env={}, overrides={"home": str(home), **settings})
        self.specs = load_specs()
        self.registry = Registry(home / "registry.sqlite", self.config, self.specs, env={})
        self.environments = Environments(home, home / "cache", self.specs)
        self.machine = Machine(self.config.fake_device)
        self.events = Events(stream=None)
        self.pool = Pool(
            self.config, self.registry, self.environments, self.specs, self.machine, self.events
        )

    def model(self, name: str, **facts: Any) -> Any:
        """A fake model's file; the model as the registry sees it."""
        folder = self.home / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.fake.json").write_text(json.dumps({"name": name, **facts}))
        return self.registry.find(name)

    async def ask(self, model: Any, text: str = "who", max_tokens: int = 4, **kw: Any) -> Reader:
        reader = Reader()
        await self.pool.serving.run(model, chat(text, max_tokens), reader, **kw)
        return reader

    def worker(self, model: str) -> dict[str, Any]:
        """Its worker's status; between two workers there may be none."""
        none = {"state": "gone", "busy": 0, "pid": 0}
        return next((w for w in self.pool.status()["workers"] if w["model"] == model), none)


@contextlib.asynccontextmanager
async def house(home: Path, **settings: Any) -> AsyncIterator[House]:
    built = House(home, **settings)
    await built.pool.start()
    try:
        yield built
    finally:
        await built.pool.close(0)
        built.registry.close()
        built.machine.close()
