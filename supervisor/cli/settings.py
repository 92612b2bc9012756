"""`config show|check|diff|reload`: the configuration, where each value comes from, what is new."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option, remote_options

if TYPE_CHECKING:
    from uml.supervisor.config import Config


def register(commands: Commands) -> None:
    parser = commands.add(
        "config",
        None,
        "the configuration: show, check, diff, reload",
        "uml config check my.toml\numl config diff",
    )
    inner = Commands(parser)
    shown = inner.add("show", show, "every value and where it comes from", "uml config show --json")
    check = inner.add("check", check_file, "is a file right", "uml config check uml.toml")
    for one in (shown, check):
        one.add_argument("file", metavar="FILE", nargs="?", help="else the one in effect")
        json_option(one)
    compared = inner.add(
        "diff", diff, "what a reload would change and restart", "uml config diff new.toml"
    )
    compared.add_argument("file", metavar="FILE", nargs="?", help="else the server's own")
    again = inner.add("reload", reload, "let the server read it anew", "uml config reload")
    for one in (compared, again):
        json_option(one)
        remote_options(one)


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
    from uml.plugins.loader import load_specs
    from uml.supervisor.checks import check, doubts

    config = remote.load(args.file)
    check(config)
    with remote.registry(config) as registry:
        found = doubts(config, registry, load_specs(config.home))
    where = str(config.path) if config.path else "no file, the defaults"
    if args.json:
        output.print_json({"path": config.path, "ok": True, "doubts": found})
        return 0
    output.say(f"{where}: right")
    for doubt in found:
        output.note(f"warning: {doubt}")
    return 0


def diff(args: argparse.Namespace) -> int:
    text = Path(args.file).read_text(encoding="utf-8") if args.file else None
    return _told(args, remote.connect(args).reload_config(dry_run=True, toml=text))


def reload(args: argparse.Namespace) -> int:
    return _told(args, remote.connect(args).reload_config())


def _told(args: argparse.Namespace, found: Mapping[str, Any]) -> int:
    if args.json:
        output.print_json(found)
        return 0
    changes = found.get("changes") or []
    if not changes:
        output.note("no difference: what is in force is what the configuration says")
        return 0
    rows: list[list[Cell | str]] = [
        [c["key"], Cell(_text(c["old"]), "dim"), Cell(_text(c["new"]), "bold"), _effect(c)]
        for c in changes
    ]
    output.table(("KEY", "OLD", "NEW", "TAKES EFFECT"), rows)
    for restart in found.get("restarts") or []:
        busy = restart.get("busy")
        after = f" after {words.plural(busy, 'running answer')}" if busy else ""
        verb = "is loaded again" if found.get("applied") else "would be loaded again"
        output.say(f"{restart['model']} {verb}{after}: {', '.join(restart['because'])}")
    return 0


def _effect(change: Mapping[str, Any]) -> str:
    if change["takes"] == "now":
        return "at once"
    what = "the model's next load" if change["key"].startswith("models.") else "the next start"
    return f"with {what}"


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
