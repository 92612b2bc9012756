"""`backends ls|install|rm|check`: the environments that run the models."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.failures import FAILED
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option, remote_options

if TYPE_CHECKING:
    from uml.protocol.models import BackendSpec
    from uml.supervisor.environments import Environments, EnvironmentStatus


def register(commands: Commands) -> None:
    parser = commands.add(
        "backends", None, "environments of backends: ls, install, rm, check", "uml backends ls"
    )
    inner = Commands(parser)
    ls = inner.add("ls", list_backends, "what there is", "uml backends ls")
    install = inner.add(
        "install", install_one, "make an environment", "uml backends install llama_cpp"
    )
    install.add_argument("--force", action="store_true", help="make it again")
    gone = inner.add("rm", remove, "delete an environment", "uml backends rm llama_cpp")
    remote_options(gone)
    check = inner.add(
        "check",
        check_one,
        "load the library in a process of its own and decode a token",
        "uml backends check llama_cpp",
    )
    for one in (install, gone, check):
        one.add_argument("backend", metavar="NAME")
    for one in (ls, install, gone, check):
        json_option(one)


def _environments() -> tuple[Environments, Mapping[str, BackendSpec]]:
    from uml.plugins.loader import load_specs
    from uml.supervisor.environments import Environments
    from uml.supervisor.paths import cache_dir

    config = remote.load()
    specs = load_specs(config.home)
    return Environments(config.home, cache_dir(), specs), specs


def list_backends(args: argparse.Namespace) -> int:
    environments, specs = _environments()
    found = environments.status()
    if args.json:
        output.print_json([_data(s, specs[s.name]) for s in found])
        return 0
    titles = ("NAME", "STATUS", "VERSION", "DEVICES", "SIZE", "LICENCE")
    output.table(titles, [_row(s, specs[s.name]) for s in found], right=("SIZE",))
    return 0


def _row(status: EnvironmentStatus, spec: BackendSpec) -> list[Cell | str]:
    state = Cell("ready", "green") if status.installed else Cell(_short(status), "yellow")
    return [
        Cell(status.name, "bold"),
        state,
        _version(status, spec) or "-",
        ",".join(spec.devices),
        words.size(status.size_bytes) if status.size_bytes else "-",
        spec.licence or "-",
    ]


def _short(status: EnvironmentStatus) -> str:
    return (status.error or "not installed").removeprefix("is ").split(",")[0][:60]


def _version(status: EnvironmentStatus, spec: BackendSpec) -> str | None:
    """Of the library that does the work: the first requirement's project."""
    import re

    if not spec.requirements:
        return None

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = canonical(re.split(r"[\s\[=<>!~;@]", spec.requirements[0], maxsplit=1)[0])
    return next((v for n, v in status.versions.items() if canonical(n) == project), None)


def _data(status: EnvironmentStatus, spec: BackendSpec) -> dict[str, Any]:
    return {
        **dataclasses.asdict(status),
        "version": _version(status, spec),
        "devices": list(spec.devices),
        "formats": list(spec.formats),
        "tasks": list(spec.tasks),
        "licence": spec.licence,
    }


def install_one(args: argparse.Namespace) -> int:
    from uml.supervisor.cli.bars import Steps

    environments, specs = _environments()
    environments.check_possible(args.backend)
    with Steps(kept=True) as progress:
        status = environments.install(args.backend, progress, force=args.force)
    return _told(args, status, specs, "installed")


def check_one(args: argparse.Namespace) -> int:
    environments, specs = _environments()
    return _told(args, environments.check(args.backend), specs, "works")


def _told(
    args: argparse.Namespace,
    status: EnvironmentStatus,
    specs: Mapping[str, BackendSpec],
    well: str,
) -> int:
    if args.json:
        output.print_json(_data(status, specs[status.name]))
    elif status.installed:
        version = _version(status, specs[status.name])
        proof = {
            "decoded": "a token was decoded",
            "imported": "the library was loaded, no model is here to decode with",
        }.get(status.canary)
        parts = [version, words.size(status.size_bytes) if status.size_bytes else None, proof]
        details = ", ".join(p for p in parts if p)
        output.say(f"{status.name} {well}" + (f": {details}" if details else ""))
    else:
        output.say(f"{status.name} {status.error or 'is not installed'}", "red")
    return 0 if status.installed else FAILED


def remove(args: argparse.Namespace) -> int:
    from uml.protocol.errors import Conflict

    client = remote.running(args)
    workers = client.status().workers or [] if client else []
    users = [str(w.model or "a standby") for w in workers if w.backend == args.backend]
    if users:
        raise Conflict(f"{args.backend} is in use: {', '.join(users)} loaded with it")
    environments, _ = _environments()
    environments.remove(args.backend)
    if args.json:
        output.print_json({"name": args.backend, "removed": True})
    else:
        output.say(f"removed {args.backend}")
    return 0
