"""Where things live on this platform. Stdlib only and quick: every start begins here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def _platform_dir(xdg: str, unix: str, mac: str) -> Path:
    if sys.platform == "darwin":
        return Path.home() / mac / "uml"
    root = os.environ.get(xdg, "")
    return (Path(root) if os.path.isabs(root) else Path.home() / unix) / "uml"


def home_dir() -> Path:
    """Where models, environments and state live: `UML_HOME` or the platform's data folder."""
    return _from_env("UML_HOME") or _platform_dir(
        "XDG_DATA_HOME", ".local/share", "Library/Application Support"
    )


def cache_dir() -> Path:
    """What can be made again: built wheels, downloads. `UML_CACHE` or the platform's folder."""
    return _from_env("UML_CACHE") or _platform_dir("XDG_CACHE_HOME", ".cache", "Library/Caches")


def config_dir() -> Path:
    """The platform's folder of configuration files."""
    return _platform_dir("XDG_CONFIG_HOME", ".config", "Library/Application Support")


def config_places() -> list[Path]:
    """Where a configuration is looked for, best first."""
    return [Path.cwd() / "uml.toml", config_dir() / "uml.toml"]


def find_config(env: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration that counts: `UML_CONFIG`, or the first there is."""
    if env.get("UML_CONFIG"):
        return Path(env["UML_CONFIG"]).expanduser()
    return next((p for p in config_places() if p.is_file()), None)


def _from_env(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value).expanduser().absolute() if value else None
