"""`config show|check`: the configuration in effect, and where each value comes from."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option

if TYPE_CHECKING:
    from uml.supervisor.config import Config


def register(commands: Commands) -> None:
    parser = commands.add(
        "config",
        None,
        "the configuration: show, check",
        "uml config show\numl config check my.toml",
    )
    inner = Commands(parser)
    shown = inner.add("show", show, "every value and where it comes from", "uml config show --json")
    check = inner.add("check", check_file, "is a file right", "uml config check uml.toml")
    for one in (shown, check):
        one.add_argument("file", metavar="FILE", nargs="?", help="else the one in effect")
        json_option(one)


def show(args: argparse.Namespace) -> int:
    config = remote.load(args.file)
    values = _values(config)
    if args.json:
        output.print_json(
            {
                "path": config.path,
                "values": {key: {"value": v, "from": origin} for key, v, origin in values},
            }
        )
        return 0
    rows: list[list[Cell | str]] = [
        [key, Cell(_text(value), "" if origin == "default" else "bold"), Cell(origin, "dim")]
        for key, value, origin in values
    ]
    output.table(("KEY", "VALUE", "FROM"), rows)
    return 0


def check_file(args: argparse.Namespace) -> int:
    config = remote.load(args.file)
    where = str(config.path) if config.path else "no file, the defaults"
    if args.json:
        output.print_json({"path": config.path, "ok": True})
    else:
        output.say(f"{where}: right")
    return 0


def _values(config: Config) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of everything that can be set, as in the file."""
    import tomllib

    from uml.supervisor.config import Config, ModelConfig, keys

    written: dict[str, Any] = {}
    if config.path:
        written = tomllib.loads(config.path.read_text(encoding="utf-8"))
    found: list[tuple[str, Any, str]] = []
    for key, field in keys(Config).items():
        value = getattr(config, field.name)
        variable = f"UML_{key.upper()}"
        if key == "models" or (key == "fake_device" and value is None):
            continue
        if field.metadata["env"] and os.environ.get(variable):
            origin = variable
        else:
            origin = str(config.path) if key in written else "default"
        found.append((key, "***" if key == "api_key" and value else _plain(value), origin))
    for model, settings in config.models.items():
        for key, field in keys(ModelConfig).items():
            value = getattr(settings, field.name)
            if key in written.get("models", {}).get(model, {}):
                found.append((f"models.{model}.{key}", _plain(value), str(config.path)))
    return found


def _plain(value: Any) -> Any:
    """What JSON can say of it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
