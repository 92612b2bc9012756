"""`up`, `serve`, `stop`, `test`: the supervisor itself."""

from __future__ import annotations

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.failures import Failure
from uml.supervisor.cli.parsing import Commands, Parser, json_option, remote_options, whole

if TYPE_CHECKING:
    from uml.supervisor.client import Client
    from uml.supervisor.config import Config

#: Seconds after which `stop` says what it waits for.
_PATIENCE_S = 0.5


def register(commands: Commands) -> None:
    up = commands.add(
        "up",
        set_up,
        "everything from nothing: environments, a small chat model, then serve",
        "uml up\numl up --load smollm2-135m-instruct",
    )
    up.add_argument("--no-serve", action="store_true", help="stop after the set-up")
    serve = commands.add(
        "serve",
        serve_here,
        "run the server, here or in the background",
        "uml serve --port 8484\numl serve -d --load smollm2-135m-instruct",
    )
    serve.add_argument("-d", "--detach", action="store_true", help="run it in the background")
    for parser in (up, serve):
        _where(parser)
    stop = commands.add("stop", stop_it, "end the running server", "uml stop")
    stop.add_argument("--force", action="store_true", help="cut answers that are still running")
    json_option(stop)
    remote_options(stop)
    commands.add("test", run_tests, "set up what the tests need, and run them", "uml test --fast")


def _where(parser: Parser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    parser.add_argument(
        "--port", metavar="N", type=whole(0, 65535), help="port to listen on; 0 = a free one"
    )
    parser.add_argument("--config", metavar="FILE", help="configuration (else uml.toml)")
    parser.add_argument("--headless", action="store_true", help="without the web page")
    parser.add_argument(
        "--load", metavar="MODEL", action="append", default=[], help="load at the start; repeatable"
    )


def _config(args: argparse.Namespace, text: str | None = None) -> Config:
    config = remote.load(args.config, text, host=args.host, port=args.port)
    return dataclasses.replace(config, preload=(*config.preload, *args.load))


def _already(config: Config) -> str | None:
    """A line about the supervisor that has our address, None when there is none."""
    from uml.protocol.errors import UmlError
    from uml.supervisor.client import Client, Unreachable

    if not config.port:
        return None
    client = Client(remote.configured_url(config), config.api_key, timeout=5)
    try:
        pid = remote.health(client).get("pid")
    except (Unreachable, Failure):
        return None
    except UmlError:  # one of ours that does not like the question
        pid = None
    return f"already running at {client.base_url}" + (f" (pid {pid})" if pid else "")


def serve_here(args: argparse.Namespace) -> int:
    config = _config(args)
    already = _already(config)
    if already:
        raise Failure(f"a supervisor is {already}", "`uml stop` ends it, --port picks another port")
    if not args.detach:
        return _serve(config, args)
    from uml.supervisor.cli import background

    started = background.start(config.home, _options(args))
    output.say(f"listening on {started.url} (pid {started.pid})")
    output.note(f"log: {started.log}")
    if started.url != remote.configured_url(remote.load()):
        output.note(f"other commands find it by: export UML_URL={started.url}")
    return 0


def _options(args: argparse.Namespace) -> list[str]:
    """The command line of the same server in the foreground."""
    options = [f"--load={model}" for model in args.load]
    if args.host is not None:
        options.append(f"--host={args.host}")
    if args.port is not None:
        options.append(f"--port={args.port}")
    if args.config is not None:
        options.append(f"--config={Path(args.config).absolute()}")
    return options + ["--headless"] * args.headless


def _serve(config: Config, args: argparse.Namespace) -> int:
    from uml.supervisor.app import serve

    return serve(config, headless=args.headless, reread=partial(_config, args))


def set_up(args: argparse.Namespace) -> int:
    from uml.supervisor import bootstrap
    from uml.supervisor.cli.bars import Downloads, Steps

    config = _config(args)
    already = None if args.no_serve else _already(config)
    if already:
        output.say(f"uml is {already}")
        return 0
    with Downloads() as pulled, Steps(kept=True) as steps:

        def step(stage: str, fraction: float | None) -> None:
            pulled.end()
            steps(stage, fraction)

        bootstrap.up(config, step, pulled)
    output.note(_what_next(config, serving=not args.no_serve))
    return 0 if args.no_serve else _serve(config, args)


def _what_next(config: Config, *, serving: bool) -> str:
    with remote.registry(config) as registry:
        able = [m.id for m in registry.models() if m.facts and "chat" in m.facts.tasks]
    model = next((m for m in config.preload if m in able), able[0] if able else "MODEL")
    url = remote.configured_url(config)
    lines = [
        "everything is set up; try in another terminal:" if serving else "set up; try:",
        "",
        f'  uml run {model} "Why is the sky blue?" --temperature 0.2',
        "  uml ls",
    ]
    if config.port:
        messages = '"messages": [{"role": "user", "content": "Hello"}]'
        lines += [
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
            f"""    -d '{{"model": "{model}", {messages}, "max_tokens": 64}}'""",
        ]
    return "\n".join(lines)


def stop_it(args: argparse.Namespace) -> int:
    from uml.supervisor.cli.bars import Steps

    client = remote.connect(args)
    pid = remote.health(client).get("pid")
    client.shutdown(force=args.force)
    asked = time.monotonic()
    with Steps() as progress:
        while not _gone(client, pid if isinstance(pid, int) else None):
            if time.monotonic() - asked > _PATIENCE_S:
                progress("waiting for running answers to finish", None)
            time.sleep(0.05)
    if args.json:
        output.print_json({"stopped": True, "pid": pid, "url": client.base_url})
    else:
        output.say(f"stopped {client.base_url}" + (f" (pid {pid})" if pid else ""))
    return 0


def _gone(client: Client, pid: int | None) -> bool:
    """Whether nobody answers any more and, on this machine, the process has ended."""
    from uml.protocol.errors import UmlError
    from uml.supervisor import tree
    from uml.supervisor.client import Unreachable

    if pid is not None and _is_here(client.base_url):
        return not tree.living([pid])
    try:
        client.health()
    except Unreachable:
        return True
    except UmlError:
        pass
    return False


def _is_here(url: str) -> bool:
    from urllib.parse import urlsplit

    from uml.supervisor.config import is_loopback

    return is_loopback(urlsplit(url).hostname or "")


def run_tests(args: argparse.Namespace) -> int:
    """Reached by `uml test`; from a checkout, `run.py` goes there directly."""
    from uml.supervisor import bootstrap

    if not (bootstrap.CHECKOUT / "tests").is_dir():
        raise Failure("the tests are in the checkout, not in the installed package")
    return bootstrap.start(["test", *args.rest])
