"""`profile ls`, `profile use`: models that belong together."""

from __future__ import annotations

import argparse

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.bars import Steps
from uml.supervisor.cli.loading import say_loaded
from uml.supervisor.cli.parsing import Commands, duration, json_option, remote_options


def register(commands: Commands) -> None:
    parser = commands.add("profile", None, "models that belong together", "uml profile use voice")
    own = Commands(parser)
    ls = own.add("ls", list_profiles, "the profiles and their models", "uml profile ls")
    use = own.add("use", use_profile, "load one's models together", "uml profile use voice")
    for made in (ls, use):
        json_option(made)
        remote_options(made)
    use.add_argument("name", metavar="NAME")
    use.add_argument("--keep-alive", metavar="TIME", type=duration, help='"10m", -1 = for ever')


def list_profiles(args: argparse.Namespace) -> int:
    found = remote.connect(args).profiles().profiles or {}
    if args.json:
        output.print_json(found)
    elif found:
        output.table(("NAME", "MODELS"), [[name, ", ".join(m)] for name, m in found.items()])
    else:
        output.note("no profile: name some in the configuration, or pull a model of each kind")
    return 0


def use_profile(args: argparse.Namespace) -> int:
    client = remote.connect(args)
    with Steps(f"{args.name}:") as progress:
        found = client.use_profile(args.name, keep_alive=args.keep_alive, on_progress=progress)
    if args.json:
        output.print_json(found)
        return 0
    for worker in found.workers or []:
        say_loaded(worker, str(worker.get("model")))
    return 0
