"""`top`, `stats`: what happens now, and what happened by day."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option, remote_options, whole

if TYPE_CHECKING:
    from rich.console import Group

#: Events under the tables.
_EVENTS = 10
DEVICES = ("DEVICE", "KIND", "TOTAL", "LIMIT", "FREE", "PROMISED")
_MODELS = (
    *("NAME", "DEVICE", "MEMORY", "SLOTS", "WAITING", "OUT/S"),
    *("REQUESTS", "ERRORS", "FIRST", "TOK/S", "STATE"),
)
_STATS = (
    *("DAY", "MODEL", "REQUESTS", "ERRORS", "LEFT", "TOKENS IN", "OUT"),
    *("FIRST", "TOK/S", "LOADS", "LOAD"),
)


def register(commands: Commands) -> None:
    top = commands.add("top", watch, "devices and models, live", "uml top")
    top.add_argument(
        "-n", "--looks", metavar="N", type=whole(1, 1_000_000), help="end after N looks"
    )
    stats = commands.add(
        "stats",
        show_stats,
        "requests, tokens, errors and speeds by day and model",
        "uml stats --days 7\numl stats smollm2-135m-instruct",
    )
    stats.add_argument("model", metavar="MODEL", nargs="?")
    stats.add_argument(
        "--days", metavar="N", type=whole(1, 10_000), default=30, help="today and those before"
    )
    for parser in (top, stats):
        json_option(parser)
        remote_options(parser)


# --- now -----------------------------------------------------------------------------------


def watch(args: argparse.Namespace) -> int:
    """Ends with Ctrl-C or the supervisor; without a terminal, after one look."""
    looks = _looks(args, deque(maxlen=_EVENTS))
    if args.json:
        for _, (look, _) in zip(_count(args.looks), looks, strict=False):
            print(json.dumps(look), flush=True)
        return 0
    if not output.terminal():
        next(looks, None)  # a speed takes two looks
        for _, (look, _) in zip(range(args.looks or 1), looks, strict=False):
            _print(look)
        return 0
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        for _, (look, events) in zip(_count(args.looks), looks, strict=False):
            live.update(_drawing(look, events), refresh=True)
    return 0


def _count(most: int | None) -> Iterator[int]:
    number = 0
    while most is None or number < most:
        yield number
        number += 1


def _looks(
    args: argparse.Namespace, events: deque[str]
) -> Iterator[tuple[Mapping[str, Any], deque[str]]]:
    from uml.supervisor.events import render_pretty

    with remote.connect(args).events(live=True) as stream:
        for event in stream:
            if event["event"] == "live":
                yield event, events
            elif event["level"] != "debug":
                events.append(output.clean(render_pretty(event)))


def _title(look: Mapping[str, Any]) -> str:
    waiting = sum((look.get("waiting") or {}).values())
    return (
        f"uml {look.get('version')} at {look.get('url')}, {look.get('state')}, "
        f"up for {words.seconds(look.get('uptime_s'))}, {words.plural(waiting, 'request')} waiting"
    )


def _print(look: Mapping[str, Any]) -> None:
    output.say(_title(look))
    print()
    output.table(DEVICES, device_rows(look), right=DEVICES[2:])
    print()
    output.table(_MODELS, _model_rows(look), right=_MODELS[2:-1])


def _drawing(look: Mapping[str, Any], events: deque[str]) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text(_title(look), style="bold", no_wrap=True),
        Text(),
        output.drawing(DEVICES, device_rows(look), right=DEVICES[2:]),
        Text(),
        output.drawing(_MODELS, _model_rows(look), right=_MODELS[2:-1]),
        Text(),
        *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in events),
    )


def device_rows(status: Mapping[str, Any]) -> list[list[Cell | str]]:
    """DEVICE, KIND, TOTAL, LIMIT, FREE, PROMISED of GET /status."""
    sizes = ("total_bytes", "cap_bytes", "free_bytes", "leased_bytes")
    return [
        [
            str(d.get("name")),
            str(d.get("detail") or d.get("kind") or "-"),
            *(words.size(d.get(key)) for key in sizes),
        ]
        for d in status.get("devices") or []
    ]


def _model_rows(look: Mapping[str, Any]) -> list[list[Cell | str]]:
    """Workers, and models that only wait, failed or were used before."""
    usage, waiting = look.get("usage") or {}, look.get("waiting") or {}
    workers = look.get("workers") or []
    rows: list[list[Cell | str]] = []
    for worker in workers:
        device, memory = worker.get("device"), worker.get("memory_bytes") or {}
        name, state = str(worker.get("model") or "(standby)"), str(worker.get("state"))
        held = [str(device or "-"), words.size(memory.get(device))]
        slots = f"{worker.get('busy')}/{worker['slots']}" if worker.get("slots") else "-"
        speed = worker.get("pieces_per_s")
        out = f"{speed:.0f}" if speed else "-"
        rows.append(_row(name, held, slots, out, state, usage, waiting))
    loaded = {w.get("model") for w in workers}
    states = {f.get("model"): "failed" for f in look.get("failed") or []}
    for name in sorted({*usage, *waiting, *states} - loaded):
        state = states.get(name, "unloaded")
        rows.append(_row(name, ["-", "-"], "-", "-", state, usage, waiting))
    return rows


_STYLES = {"ready": "green", "failed": "red", "unloaded": "dim"}


def _row(
    name: str,
    held: list[str],
    slots: str,
    out: str,
    state: str,
    usage: Mapping[str, Any],
    waiting: Mapping[str, Any],
) -> list[Cell | str]:
    used = usage.get(name) or {}
    return [
        Cell(name, "bold"),
        *held,
        slots,
        str(waiting.get(name) or "-"),
        out,
        *_used(used, used.get("first_p50_s")),
        Cell(state, _STYLES.get(state, "yellow")),
    ]


def _used(used: Mapping[str, Any], first_s: Any) -> list[Cell | str]:
    """Requests, errors, first output, speed."""
    errors, speed = used.get("errors") or 0, used.get("tokens_per_s")
    return [
        str(used.get("requests") or 0),
        Cell(str(errors), "red" if errors else ""),
        words.seconds(first_s),
        f"{speed:.1f}" if speed else "-",
    ]


# --- by day --------------------------------------------------------------------------------


def show_stats(args: argparse.Namespace) -> int:
    client = remote.running(args)
    found = client.stats(args.days, args.model) if client else _from_disk(args)
    if args.json:
        output.print_json(found)
        return 0
    days = found["days"]
    if not days:
        output.note("nothing was asked of a model in these days")
        return 0
    rows = [_day(day) for day in days]
    if len(days) > 1:
        rows.append([Cell(cell.text, "bold") for cell in map(_cell, _day(found["total"]))])
    output.table(_STATS, rows, right=_STATS[2:])
    return 0


def _cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _day(day: Mapping[str, Any]) -> list[Cell | str]:
    requests, errors, first, speed = _used(day, day.get("first_s"))
    return [
        str(day.get("day") or "total"),
        str(day.get("model") or ""),
        requests,
        errors,
        *(str(day.get(k) or 0) for k in ("cancelled", "prompt_tokens", "completion_tokens")),
        first,
        speed,
        str(day.get("loads") or 0),
        words.seconds(day.get("load_s")),
    ]


def _from_disk(args: argparse.Namespace) -> dict[str, Any]:
    from uml.supervisor.usage import days_ago, read, together

    config = remote.load()
    rows = read(config.home / "registry.sqlite", days_ago(args.days), args.model)
    return {"days": [row.to_map() for row in rows], "total": together(rows).to_map()}
