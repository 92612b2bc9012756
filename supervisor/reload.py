"""A new configuration while we serve: what it changes, and doing it.

What is wrong in it leaves the old one in force. A model whose worker was started with other
settings than the new ones is loaded again, after its running answers; nothing else is disturbed.
When a setting takes effect is said where it is defined (`config.Takes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.supervisor.api.gate import Gate
from uml.supervisor.checks import check
from uml.supervisor.config import Config, ConfigError, ModelConfig, Takes, keys

if TYPE_CHECKING:
    from uml.supervisor.api.gateway import Gateway

Reread = Callable[[str | None], Config]


@dataclass(frozen=True)
class Change:
    """One setting. key: as in the file, `models."x".n_ctx` for one of a model."""

    key: str
    old: Any
    new: Any
    takes: Takes

    def to_map(self) -> dict[str, Any]:
        return {"key": self.key, "old": self.old, "new": self.new, "takes": self.takes.value}


@dataclass(frozen=True)
class Plan:
    """What a reload does. config: what is in force then. restarts: models that are loaded again,
    with the settings that are the cause."""

    config: Config
    changes: list[Change]
    restarts: dict[str, list[str]]

    def to_map(self) -> dict[str, Any]:
        return {
            "path": str(self.config.path) if self.config.path else None,
            "changes": [change.to_map() for change in self.changes],
            "restarts": [{"model": m, "because": why} for m, why in self.restarts.items()],
        }


def plan(old: Config, new: Config, loaded: Iterable[str]) -> Plan:
    """loaded: models that have a worker."""
    changes, kept = [], {}
    for key, field in keys(Config).items():
        before, after = getattr(old, field.name), getattr(new, field.name)
        if key == "models" or before == after:
            continue
        takes = field.metadata["takes"]
        if takes is Takes.START:
            kept[field.name] = before
        secret = key == "api_key"
        changes.append(Change(key, _shown(before, secret), _shown(after, secret), takes))
    for name in sorted({*old.models, *new.models}):
        changes += _of_model(old, new, name)
    restarts = {}
    for model in loaded:
        found = _of_model(old, new, model)
        if because := [c.key.rpartition(".")[2] for c in found if c.takes is Takes.START]:
            restarts[model] = because
    return Plan(dataclasses.replace(new, **kept), changes, restarts)


def _of_model(old: Config, new: Config, name: str) -> list[Change]:
    before, after, found = old.for_model(name), new.for_model(name), []
    for key, field in keys(ModelConfig).items():
        was, is_ = getattr(before, field.name), getattr(after, field.name)
        if was != is_:
            full = f'models."{name}".{key}'
            found.append(Change(full, _shown(was), _shown(is_), field.metadata["takes"]))
    return found


def _shown(value: Any, secret: bool = False) -> Any:
    """As JSON can say it."""
    if secret:
        return "***" if value else None
    if isinstance(value, tuple):
        return [str(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, dict, type(None))) else str(value)


class Reloading:
    """reread: reads the configuration as the start did, with the options of the command line; a
    text stands for what the file says."""

    def __init__(self, gateway: Gateway, reread: Reread | None) -> None:
        self._gateway, self._reread = gateway, reread

    def look(self, text: str | None = None) -> Plan:
        """What a reload would do. text: instead of the file's. Raises: ConfigError, also when there
        is nothing to read."""
        if self._reread is None:
            raise ConfigError("this server was started with a configuration that has no file")
        gateway = self._gateway
        old, new = gateway.config, self._reread(text)
        workers = gateway.pool.scheduler.workers.values()
        found = plan(old, new, sorted({w.model for w in workers if w.model}))
        check(found.config)
        return found

    def reload(self, cause: str) -> Plan:
        """Do it. Raises: ConfigError; then nothing has changed."""
        gateway = self._gateway
        try:
            found = self.look()
        except ConfigError as e:
            gateway.events.emit("config.refused", "error", cause=cause, reason=e.message)
            raise
        new, old = found.config, gateway.config
        gateway.events.emit(
            "config.reloaded",
            cause=cause,
            changed=[c.key for c in found.changes],
            restarts=list(found.restarts),
        )
        for change in found.changes:
            if change.takes is Takes.START and not change.key.startswith("models."):
                gateway.events.emit("config.waits_for_start", "warning", key=change.key)
        gateway.config = new
        gateway.gate = Gate(new.host, new.api_key, new.allowed_hosts, new.allowed_origins)
        gateway.events.set(new.log_format, new.log_level)
        gateway.registry.configure(new)
        gateway.pool.configure(new, found.restarts)
        for name in new.preload:
            if name not in old.preload:
                gateway.pool.keeper.load(name, "it is new in preload")
        return found
