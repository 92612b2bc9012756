"""What can be said of a configuration beyond its values one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from uml.protocol.errors import UmlError
from uml.supervisor.api.generation import read_sampling
from uml.supervisor.config import AUTO, Config, ConfigError, check_together
from uml.supervisor.names import nearest

if TYPE_CHECKING:
    from uml.supervisor.registry import Registry


def check(config: Config) -> None:
    """Raises: ConfigError for what cannot be served."""
    check_together(config)
    for model_id, own in config.models.items():
        try:
            known = read_sampling(own.sampling)
        except UmlError as e:
            raise ConfigError(f'models."{model_id}".sampling: {e.message}', param=e.param) from e
        unknown = set(own.sampling) - set(known)
        if unknown:
            raise ConfigError(f'models."{model_id}".sampling: {min(unknown)} is not a key')


def doubts(config: Config, registry: Registry, backends: Iterable[str]) -> list[str]:
    """What is accepted and may not be meant: names that nothing here has."""
    found, known = [], registry.names()
    told = [(f'models."{name}"', name) for name in config.models]
    told += [("preload", name) for name in config.preload]
    for model_id, own in config.models.items():
        told += [(f'models."{model_id}".conflicts_with', name) for name in own.conflicts_with]
        told += [(f'models."{model_id}".draft_model', own.draft_model)] if own.draft_model else []
    for key, name in told:
        if name.casefold() not in known:
            near = nearest(name, known)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            found.append(f"{key}: no model here is called {name}{hint}")
    able = set(backends)
    named = [("standby", name) for name in config.standby if name != AUTO]
    named += [(f'models."{m}".backend', c.backend) for m, c in config.models.items() if c.backend]
    found += [f"{key}: there is no backend {name}" for key, name in named if name not in able]
    return found
