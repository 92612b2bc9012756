"""What pip (or uv) is told about package indexes on this machine.

Source: pip's documentation, "Configuration"; uv's, "Environment variables".
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_DEFAULT_INDEX = "https://pypi.org/simple"
_SECTIONS = ("global", "download", "install")


def pip_setting(key: str) -> str:
    """A setting of pip's, "" if it is not set: `PIP_...` variables over the files."""
    value = os.environ.get(f"PIP_{key.upper().replace('-', '_')}")
    return value if value is not None else _from_files().get(key, "")


def indexes() -> list[str]:
    """Addresses of the indexes, in the order they are asked; none with `no-index`."""
    if pip_setting("no-index").lower() in ("1", "true", "yes", "on"):
        return []
    env = os.environ
    main = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or pip_setting("index-url")
    extra = f"{pip_setting('extra-index-url')} {env.get('UV_EXTRA_INDEX_URL', '')}"
    return list(dict.fromkeys([main or _DEFAULT_INDEX, *extra.split()]))


def link_folders() -> list[Path]:
    """Folders with archives that pip looks into as well (`find-links`)."""
    folders = []
    for word in pip_setting("find-links").split():
        path = Path(word.removeprefix("file://")).expanduser()
        if "://" not in str(path) and path.is_dir():
            folders.append(path)
    return folders


def _from_files() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in _files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip will say so
        for section in _SECTIONS:
            if parser.has_section(section):
                found |= {k.replace("_", "-"): v for k, v in parser[section].items()}
    return found


def _files() -> Iterator[Path]:
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return
    user = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or user / ".config")
    yield from (Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"))
    yield from (user / ".pip/pip.conf", config / "pip/pip.conf")
    yield user / "Library/Application Support/pip/pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if own:
        yield Path(own)
