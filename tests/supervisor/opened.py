"""A registry of one's own: see the fixture `opened`."""

from __future__ import annotations

from collections.abc import Callable

from uml.supervisor.registry import Registry

Open = Callable[..., Registry]


def ids(registry: Registry) -> list[str]:
    return [m.id for m in registry.models()]
