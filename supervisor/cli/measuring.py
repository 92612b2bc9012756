"""`bench`: how fast is a model here, alone and beside other servers."""

from __future__ import annotations

import argparse
import asyncio
import statistics

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.failures import Misuse
from uml.supervisor.cli.parsing import Commands, json_option, remote_options, whole


def register(commands: Commands) -> None:
    parser = commands.add(
        "bench",
        bench,
        "measure a model: tokens/s, first token, gaps; beside other servers too",
        "uml bench smollm2-135m-instruct\n"
        "uml bench smollm2-135m-instruct --peer llama-server=http://127.0.0.1:8080",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--peer",
        metavar="NAME=URL",
        action="append",
        default=[],
        help="another OpenAI-compatible server that has the model; measured in turn",
    )
    parser.add_argument("--streams", metavar="N,...", default="1,4,8", help="clients at once")
    parser.add_argument("--rounds", metavar="N", type=whole(1, 100), default=3)
    parser.add_argument("--tokens", metavar="N", type=whole(2, 4096), default=64)
    json_option(parser)
    remote_options(parser)


def bench(args: argparse.Namespace) -> int:
    from uml.supervisor.bench import Server, compare, ratio

    client = remote.connect(args)
    client.load(args.model)
    servers = [Server("uml", client.base_url.rstrip("/"), args.model, client.headers)]
    for peer in args.peer:
        name, _, url = peer.partition("=")
        if not name or not url.startswith("http"):
            raise Misuse(f"--peer {peer} is not understood", "give NAME=http://address")
        servers.append(Server(name, url.rstrip("/").removesuffix("/v1"), args.model))
    streams = _numbers(args.streams)
    found = asyncio.run(compare(servers, streams, args.rounds, args.tokens, output.note))
    if args.json:
        output.print_json(found)
        return 0
    rows: list[list[str]] = []
    for name, by_streams in found.items():
        for count, rounds in by_streams.items():
            median = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
            speeds = [r["tokens_per_s"] for r in rounds]
            ours = [r["tokens_per_s"] for r in found["uml"][count]]
            rows.append(
                [
                    name,
                    str(count),
                    f"{median['tokens_per_s']:.1f}",
                    f"{median['first_p50_s'] * 1000:.0f} ms",
                    f"{median['gap_p50_s'] * 1000:.1f} ms",
                    f"{median['gap_p99_s'] * 1000:.1f} ms",
                    "" if name == "uml" else str(ratio(ours, speeds)),
                ]
            )
    titles = ["SERVER", "STREAMS", "TOK/S", "FIRST TOKEN", "GAP P50", "GAP P99", "UML IS"]
    if len(servers) == 1:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    output.table(titles, rows, right=titles[1:6])
    return 0


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < n <= 1024 for n in found):
        raise Misuse(f"--streams {text} is not understood", "give numbers, like 1,4,8")
    return found
