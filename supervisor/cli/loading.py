"""`ps`, `status`, `load`, `unload`, `swap`: what runs, and what should."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.bars import Steps
from uml.supervisor.cli.failures import FAILED, Misuse
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import (
    Commands,
    Parser,
    duration,
    json_option,
    remote_options,
    whole,
)
from uml.supervisor.cli.watching import DEVICES, device_rows

_STYLES = {"ready": "green", "draining": "yellow", "killing": "yellow", "failed": "red"}


def register(commands: Commands) -> None:
    _finish(commands.add("ps", running, "models that are loaded", "uml ps"))
    _finish(commands.add("status", status, "devices, workers, queues, last receipts", "uml status"))
    load = commands.add("load", load_model, "load a model", "uml load gemma-3-270m --keep-alive 1h")
    swap = commands.add(
        "swap", swap_model, "make room, then load a model", "uml swap gemma-3-270m --dry-run"
    )
    for parser in (load, swap):
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument(
            "--keep-alive",
            metavar="TIME",
            type=duration,
            help='how long it stays when idle: "10m", seconds, -1 for ever',
        )
        parser.add_argument(
            "--draft-model",
            metavar="MODEL",
            help="a small model of the same family that guesses tokens, where that is faster",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only say who would go, how much and how long"
        )
        _finish(parser)
    load.add_argument(
        "--ctx", metavar="N", type=whole(1, 1 << 24), help="tokens of context one request may use"
    )
    swap.add_argument("--force", action="store_true", help="cut answers that are still running")
    unload = commands.add(
        "unload",
        unload_model,
        "unload a model and print the receipt",
        "uml unload gemma-3-270m\numl unload --all",
    )
    unload.add_argument("model", metavar="MODEL", nargs="?")
    unload.add_argument("--all", action="store_true", help="every model")
    unload.add_argument("--force", action="store_true", help="cut answers that are still running")
    _finish(unload)


def _finish(parser: Parser) -> None:
    json_option(parser)
    remote_options(parser)


# --- looking -------------------------------------------------------------------------------


def running(args: argparse.Namespace) -> int:
    found = remote.connect(args).status()
    workers, failed = found.workers or [], found.failed or []
    if args.json:
        output.print_json([*workers, *failed])
        return 0
    if workers or failed:
        _workers([*workers, *failed])
    else:
        output.note("nothing is loaded; `uml run MODEL` or a request loads a model")
    _left_over(found)
    return 0


def _workers(workers: list[Mapping[str, Any]]) -> None:
    titles = ("NAME", "BACKEND", "DEVICE", "MEMORY", "CONTEXT", "SLOTS", "STATE", "UNTIL")
    output.table(titles, [_row(w) for w in workers], right=("MEMORY", "CONTEXT", "SLOTS"))


def _row(worker: Mapping[str, Any]) -> list[Cell | str]:
    state, device = str(worker.get("state") or "-"), str(worker.get("device") or "-")
    word = state
    if worker.get("progress") is not None and state == "loading":
        word = f"{state} {worker['progress']:.0%}"
    busy, slots = worker.get("busy") or 0, worker.get("slots")
    stays = worker.get("pinned") or (state == "ready" and not busy and not worker.get("until"))
    return [
        Cell(str(worker.get("model") or "(standby)"), "bold"),
        str(worker.get("backend") or "-"),
        device,
        _held(worker.get("memory_bytes") or {}, device),
        words.context(worker.get("context")),
        f"{busy}/{slots}" if slots else "-",
        Cell(word, _STYLES.get(state, "cyan")),
        "for ever" if stays else "busy" if busy else _until(state, worker.get("until")),
    ]


def _until(state: str, epoch_s: Any) -> str:
    """When an idle model leaves, or one that was left alone is tried again."""
    return f"tried again {words.until(epoch_s)}" if state == "failed" else words.until(epoch_s)


def _held(memory: Mapping[str, int], device: str) -> str:
    """Measured bytes: on the model's device, and what its process takes of the RAM besides."""
    main = words.size(memory.get(device))
    if device != "ram" and memory.get("ram"):
        return f"{main} + {words.size(memory['ram'])} ram"
    return main


def _left_over(found: Mapping[str, Any]) -> None:
    """Memory that did not come back, and models that keep failing."""
    for residue in found.get("residue") or []:
        pids = ", ".join(str(p) for p in residue.get("pids") or []) or "unknown"
        output.note(
            f"warning: {words.size(residue.get('bytes'))} on {residue.get('device')} have not come "
            f"back from {residue.get('model') or residue.get('worker')} (pids {pids})"
        )
    for failed in found.get("failed") or []:
        more = f"; all of it: {failed['report']}" if failed.get("report") else ""
        output.note(f"warning: {failed.get('model')} keeps failing: {failed.get('cause')}{more}")


def status(args: argparse.Namespace) -> int:
    found = remote.connect(args).status()
    if args.json:
        output.print_json(found)
        return 0
    pairs: list[tuple[str, Cell | str]] = [("supervisor", str(found.url or "-"))]
    pairs.append(("version", f"{found.version or '-'}, pid {found.pid or '-'}"))
    pairs.append(("up for", words.seconds(found.uptime_s)))
    output.facts(pairs)
    print()
    output.table(DEVICES, device_rows(found), right=DEVICES[2:])
    if found.workers:
        print()
        _workers(found.workers)
    for model, count in (found.waiting or {}).items():
        output.say(f"{words.plural(count, 'request')} waiting for {model}", "yellow")
    receipts = (found.receipts or [])[-5:]
    if receipts:
        print()
        output.say("last receipts", "bold")
        _receipts(receipts)
    _left_over(found)
    return 0


# --- changing ------------------------------------------------------------------------------


def load_model(args: argparse.Namespace) -> int:
    client, options = remote.connect(args), {"n_ctx": args.ctx, "draft_model": args.draft_model}
    if args.dry_run:
        found = client.load(args.model, options=options, dry_run=True)
        return _plan(args, "load", found)
    with Steps(f"{args.model}:") as progress:
        worker = client.load(
            args.model, keep_alive=args.keep_alive, options=options, on_progress=progress
        )
    if args.json:
        output.print_json(worker)
    else:
        say_loaded(worker, args.model)
    return 0


def swap_model(args: argparse.Namespace) -> int:
    client, options = remote.connect(args), {"draft_model": args.draft_model}
    if args.dry_run:
        return _plan(args, "swap to", client.swap(args.model, options=options, dry_run=True))
    with Steps(f"{args.model}:") as progress:
        found = client.swap(
            args.model,
            force=args.force,
            keep_alive=args.keep_alive,
            options=options,
            on_progress=progress,
        )
    if args.json:
        output.print_json(found)
        return 0
    _receipts(found.receipts or [])
    say_loaded(found.worker or found, args.model)
    if found.total_s is not None:
        output.say(f"swapped in {words.seconds(found.total_s)}")
    return 0


def unload_model(args: argparse.Namespace) -> int:
    if bool(args.model) == args.all:
        raise Misuse("give one model, or --all", "`uml ps` shows what is loaded")
    client = remote.connect(args)
    found = client.unload(args.model, all=args.all, force=args.force)
    receipts = found.receipts or []
    if args.json:
        output.print_json(found)
    elif not receipts:
        output.say(f"{args.model} is not loaded" if args.model else "nothing is loaded")
    else:
        _receipts(receipts)
    return FAILED if any(r.get("verified") == "no" for r in receipts) else 0


def _plan(args: argparse.Namespace, verb: str, found: Mapping[str, Any]) -> int:
    if args.json:
        output.print_json(found)
    else:
        head, *rest = words.plan(verb, found)
        output.say(head, "bold" if found.get("fits") else "red")
        for line in rest:
            output.say(line)
    return 0 if found.get("fits") else FAILED


def say_loaded(worker: Mapping[str, Any], model: str) -> None:
    took = f" in {words.seconds(worker['load_s'])}" if worker.get("load_s") is not None else ""
    details = [words.on_devices(worker.get("memory_bytes"))] if worker.get("memory_bytes") else []
    if worker.get("context"):
        details.append(f"context {worker['context']}")
    if worker.get("slots"):
        details.append(words.plural(int(worker["slots"]), "slot"))
    if worker.get("draft_model"):
        details.append(f"draft {worker['draft_model']}")
    name = worker.get("model") or model
    output.say(f"{name}: loaded{took}" + (f", {', '.join(details)}" if details else ""))


def _receipts(receipts: list[Mapping[str, Any]]) -> None:
    for receipt in receipts:
        style = {"yes": "", "no": "red"}.get(str(receipt.get("verified")), "yellow")
        output.say(output.clean(words.receipt(receipt)), style)
