"""Finds plugins: built-ins, installed packages (entry points), folders under `UML_HOME/plugins`.

A plugin that fails is listed with its reason and stops nobody else.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uml.plugins import builtin
from uml.plugins.hooks import Registry
from uml.protocol.models import BackendSpec

#: Entry point group of installed plugins; each names a module or its `register` function.
GROUP = "uml.plugins"


@dataclass(frozen=True)
class Plugin:
    """One that was found. origin: "built-in", "package NAME VERSION" or a path.
    backends: names it brought. error: why it was left out, or None."""

    name: str
    origin: str
    backends: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Everything found, in the order it was asked."""

    specs: dict[str, BackendSpec]
    plugins: tuple[Plugin, ...]


def load_plugins(home: Path | None = None) -> Loaded:
    """Ask every plugin what it brings. home: `UML_HOME`, whose `plugins/*/spec.py` are read."""
    registry = Registry()
    plugins = [_ask(registry, "builtin", "built-in", lambda: builtin)]
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        origin = f"package {entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        plugins.append(_ask(registry, entry.name, origin, entry.load))
    for path in sorted((home / "plugins").glob("*/spec.py")) if home else ():
        plugins.append(
            _ask(registry, path.parent.name, str(path), functools.partial(_load_file, path))
        )
    return Loaded(registry.specs, tuple(plugins))


def load_specs(home: Path | None = None) -> dict[str, BackendSpec]:
    """Name -> spec of every usable backend."""
    return load_plugins(home).specs


def _ask(registry: Registry, name: str, origin: str, load: Callable[[], Any]) -> Plugin:
    """Let one plugin register; what it brings counts only when all of it is good."""
    trial = Registry()
    trial.specs.update(registry.specs)
    try:
        found = load()
        getattr(found, "register", found)(trial)
    except Exception as e:  # a plugin is somebody else's code: anything may come out of it
        return Plugin(name, origin, error=f"{type(e).__name__}: {e}")
    new = tuple(n for n in trial.specs if n not in registry.specs)
    registry.specs.update((n, trial.specs[n]) for n in new)
    return Plugin(name, origin, new)


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"uml_plugin_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
