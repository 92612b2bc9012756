"""`bench`: how fast is a model here, alone and beside other servers."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.failures import Misuse
from uml.supervisor.cli.parsing import Commands, json_option, remote_options, whole

if TYPE_CHECKING:
    from uml.supervisor.bench import Figures, Server
    from uml.supervisor.client import Client

#: Server -> streams -> rounds.
_Waves = dict[str, dict[int, "list[Figures]"]]
_OURS = "uml"


def register(commands: Commands) -> None:
    parser = commands.add(
        "bench",
        bench,
        "measure a model: tokens/s, first token, load, release, swap; beside other servers too",
        "uml bench smollm2-135m-instruct\n"
        "uml bench smollm2-135m-instruct --swap qwen2.5-0.5b\n"
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
    parser.add_argument(
        "--swap",
        metavar="OTHER",
        help="also change to this model and back, and let 8 clients want both; "
        "tells something where there is room for one of them",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=whole(1, 3600), default=20, help="of each load with --swap"
    )
    json_option(parser)
    remote_options(parser)


def bench(args: argparse.Namespace) -> int:
    client = remote.connect(args)
    about = [client.models.retrieve(name) for name in (args.model, args.swap) if name]
    model = str(about[0].id)
    # A model without a chat template is asked for completions, and then so is the other one.
    chat = all("chat" in one.tasks for one in about)
    servers = _servers(args, client, model, chat)
    streams = _numbers(args.streams)
    client.load(model)
    waves, changes, loads = asyncio.run(_measure(args, servers, streams))
    found = {
        "model": model,
        "at": time.time(),
        "tokens": args.tokens,
        "streams": {
            str(count): _medians(rounds) for count, rounds in waves[_OURS].items() if rounds
        },
        "load": _load(client, servers[0]),
    }
    if changes:
        found["swap"] = {"with": args.swap} | _medians(changes[_OURS])
    if len(servers) > 1:
        found["peers"] = {
            "streams": {s.name: waves[s.name] for s in servers[1:]},
            "swap": {s.name: changes[s.name] for s in servers[1:] if changes},
        }
    saved = _save(client, model, {k: v for k, v in found.items() if k not in ("model", "peers")})
    if args.json:
        output.print_json(found | {"thrash": loads})
        return 0
    _print_waves(waves)
    if changes:
        print()
        _print_changes(changes, loads)
    load = found["load"]
    output.say(
        f"\nload to first token {words.seconds(load['first_s'])}; kill to memory seen back "
        f"{words.seconds(load['release_s'])}, verified: {load['verified']}"
    )
    output.note(f"`uml show {model}` shows this again" if saved else "not kept: another machine")
    return 0


def _servers(args: argparse.Namespace, client: Client, model: str, chat: bool) -> list[Server]:
    """Ours and the peers."""
    from uml.supervisor.bench import Server

    found = [Server(_OURS, client.base_url.rstrip("/"), model, client.headers, chat)]
    for peer in args.peer:
        name, _, url = peer.partition("=")
        if not name or not url.startswith("http"):
            raise Misuse(f"--peer {peer} is not understood", "give NAME=http://address")
        if name in [s.name for s in found]:
            raise Misuse(f"--peer {name} is there twice", "give each server a name of its own")
        found.append(Server(name, url.rstrip("/").removesuffix("/v1"), args.model, chat=chat))
    return found


async def _measure(
    args: argparse.Namespace, servers: Sequence[Server], streams: Sequence[int]
) -> tuple[_Waves, dict[str, list[Figures]], dict[str, dict[str, Figures]]]:
    """Waves; with --swap also the changes of model, and the loads that want both."""
    from uml.supervisor import bench

    waves = await bench.compare(servers, streams, args.rounds, args.tokens, output.note)
    changes: dict[str, list[Figures]] = {s.name: [] for s in servers} if args.swap else {}
    loads: dict[str, dict[str, Figures]] = {}
    if args.swap:
        async with bench.client() as session:
            for number in range(2 * args.rounds):
                for server in bench.in_turn(servers, number):
                    asked = server if number % 2 else server.of(args.swap)
                    changes[server.name].append(await bench.change(session, asked))
            for case, share in bench.LOADS.items():
                output.note(f"8 clients, {case}: {args.seconds} s for each server")
                loads[case] = {
                    s.name: await bench.thrash(
                        session, s, args.swap, seconds=args.seconds, share=share
                    )
                    for s in servers
                }
    return waves, changes, loads


def _load(client: Client, server: Server) -> dict[str, Any]:
    """Unload it, and ask it again: what the receipt says, and the time to the first token."""
    from uml.supervisor import bench

    client.load(server.model)
    receipts = client.unload(server.model)["receipts"]

    async def ask() -> float:
        async with bench.client() as session:
            return await bench.first_token(session, server)

    return {
        "first_s": asyncio.run(ask()),
        "release_s": receipts[0]["ms"] / 1000 if receipts else None,
        "verified": receipts[0]["verified"] if receipts else "unknown",
    }


def _save(client: Client, model: str, found: Mapping[str, Any]) -> bool:
    """Keep it for `show`, when the supervisor's disk is ours."""
    config = remote.load()
    if client.status().home != str(config.home):
        return False
    with remote.registry(config) as registry:
        registry.record_bench(model, found)
    return True


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}


def _print_waves(waves: _Waves) -> None:
    from uml.supervisor.figures import ratio

    rows: list[list[str]] = []
    for name, by_streams in waves.items():
        for count, rounds in by_streams.items():
            median = _medians(rounds)
            speeds = [r["tokens_per_s"] for r in rounds]
            ours = [r["tokens_per_s"] for r in waves[_OURS][count]]
            rows.append(
                [
                    name,
                    str(count),
                    f"{median['tokens_per_s']:.1f}",
                    f"{median['first_p50_s'] * 1000:.0f} ms",
                    f"{median['gap_p50_s'] * 1000:.1f} ms",
                    f"{median['gap_p99_s'] * 1000:.1f} ms",
                    f"{sum(r['lost'] for r in rounds):.0f}",
                    "" if name == _OURS else str(ratio(ours, speeds)),
                ]
            )
    titles = ["SERVER", "STREAMS", "TOK/S", "FIRST TOKEN", "GAP P50", "GAP P99", "LOST", "UML IS"]
    if len(waves) == 1:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    output.table(titles, rows, right=titles[1:7])


def _print_changes(
    changes: Mapping[str, Sequence[Figures]], loads: Mapping[str, Mapping[str, Figures]]
) -> None:
    from uml.supervisor.figures import ratio

    rows = []
    for name, rounds in changes.items():
        times = [r["first_s"] for r in rounds]
        row = [
            name,
            f"{statistics.median(times) * 1000:.0f} ms",
            f"{_medians(rounds)['loaded_first_s'] * 1000:.0f} ms",
        ]
        for of_server in loads.values():
            figures = of_server[name]
            row += [f"{figures['answers_per_s']:.1f}", f"{figures['wait_b_max_s']:.1f} s"]
        ours = [r["first_s"] for r in changes[_OURS]]
        rows.append([*row, "" if name == _OURS else str(ratio(ours, times))])
    titles = ["SERVER", "SWAP", "LOADED"]
    for case in loads:
        titles += [f"ANSWERS/S {case.upper()}", "MAX WAIT B"]
    titles.append("UML'S SWAP IS")
    if len(changes) == 1:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    output.table(titles, rows, right=titles[1:7])


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < n <= 1024 for n in found):
        raise Misuse(f"--streams {text} is not understood", "give numbers, like 1,4,8")
    return found
