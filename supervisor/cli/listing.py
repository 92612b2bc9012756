"""`ls`, `show`, `rm`: the models on this machine, with or without a supervisor."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import UmlError
from uml.supervisor.cli import output, remote, words
from uml.supervisor.cli.output import Cell
from uml.supervisor.cli.parsing import Commands, json_option, remote_options

if TYPE_CHECKING:
    from uml.supervisor.client import Client
    from uml.supervisor.needs import Needs
    from uml.supervisor.registry import Model, Registry


#: How a quantisation would run here.
_RANKS = {
    "whole": "fits",
    "partly": "fits with some layers in RAM",
    "ram": "fits in RAM alone",
    "nowhere": "does not fit",
}


def register(commands: Commands) -> None:
    ls = commands.add("ls", list_models, "models on this machine", "uml ls")
    one = commands.add(
        "show", show, "all that is known of a model", "uml show smollm2-135m-instruct"
    )
    one.add_argument("model", metavar="MODEL")
    gone = commands.add("rm", remove, "delete a model's files", "uml rm smollm2-135m-instruct")
    gone.add_argument("model", metavar="MODEL")
    for parser in (ls, one, gone):
        json_option(parser)
        remote_options(parser)


def list_models(args: argparse.Namespace) -> int:
    models = _models(args)
    if args.json:
        output.print_json(models)
    elif not models:
        output.note("no models yet: `uml pull starter/chat` fetches a small one")
    else:
        titles = ("NAME", "TYPE", "FORMAT", "QUANT", "SIZE", "BACKEND", "SOURCE")
        output.table(titles, [_row(m) for m in models], right=("SIZE",))
    return 0


def _row(model: Mapping[str, Any]) -> list[Cell | str]:
    size, error = words.size(model.get("size_bytes")), model.get("error")
    if error:
        texts = [model["id"], "broken", model.get("format"), "-", size, "-"]
        return [*(Cell(str(t or "-"), "dim") for t in texts), Cell(str(error), "red")]
    loaded = model.get("state") not in (None, "unloaded")
    return [
        Cell(str(model["id"]), "bold" if loaded else ""),
        *(str(model.get(k) or "-") for k in ("type", "format", "quantization")),
        size,
        *(str(model.get(k) or "-") for k in ("backend", "source")),
    ]


def _models(args: argparse.Namespace) -> list[dict[str, Any]]:
    client = remote.running(args)
    if client:
        return list(client.models.list().data or [])
    with remote.registry(remote.load()) as registry:
        return [summary(model) for model in registry.models()]


def summary(model: Model) -> dict[str, Any]:
    """A model as GET /v1/models lists it, from the disk alone."""
    facts = model.facts
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "uml",
        "type": facts.type if facts else None,
        "format": model.file.format,
        "quantization": facts.quantization if facts else None,
        "size_bytes": model.file.size_bytes,
        "context_length": facts.context_length if facts else None,
        "tasks": list(facts.tasks) if facts else [],
        "state": None,
        "backend": model.backend,
        "aliases": list(model.aliases),
        "error": model.error,
        "source": model.source,
    }


def show(args: argparse.Namespace) -> int:
    client = remote.running(args)
    found = _describe_running(client, args.model) if client else _describe(args.model)
    if args.json:
        output.print_json(found)
        return 0
    output.facts(_lines(found))
    return 0


def _describe_running(client: Client, name: str) -> dict[str, Any]:
    """What a supervisor says of a model; with what lies on disk, when it is the same disk."""
    found = dict(client.models.retrieve(name))
    if client.status().home == str(remote.load().home):
        found = _describe(str(found["id"])) | {"state": found.get("state")}
    if found.get("state") == "failed":
        left_alone = client.status().failed or []
        found["failed"] = next((f for f in left_alone if f.get("model") == found["id"]), None)
    return found


def _describe(name: str) -> dict[str, Any]:
    """What is known of a model when nobody runs it."""
    from uml.protocol.errors import InvalidModel
    from uml.supervisor import crashes

    config = remote.load()
    with remote.registry(config) as registry:
        try:
            model = registry.find(name)
        except InvalidModel:  # broken: show the reason with the rest
            model = next(m for m in registry.models() if name.casefold() in _names(m))
        found = summary(model) | {
            "paths": list(model.file.paths),
            "load_s": registry.load_seconds(model.id),
            "bench": registry.bench(model.id),
            "last_crash": crashes.last(config.home, model.id),
        }
        with _told(found), remote.needs(config, registry) as needs:
            found |= _sizes(model, needs, registry)
    if model.facts:
        found["facts"] = {
            "name": model.facts.name,
            "arch": model.facts.arch,
            "parameters": model.facts.parameters,
            "embedding_length": model.facts.embedding_length,
            "block_count": model.facts.block_count,
            "vocab_size": model.facts.vocab_size,
            "chat_template": bool(model.facts.chat_template),
            "license": model.facts.license,
        }
    return found


def _sizes(model: Model, needs: Needs, registry: Registry) -> dict[str, Any]:
    """What a load of it would take. Raises: UmlError."""
    from uml.supervisor.sized import parts_of

    if model.facts and not model.backend:
        return {"estimate": parts_of(needs.guess(model), {})}
    sized, family = needs.size(model).to_map(), registry.family(model)
    ranks = {m.id: needs.size(m).rank.name.lower() for m in family if len(family) > 1}
    return sized | {"estimate_error": sized.pop("error"), "quantisations": ranks}


@contextlib.contextmanager
def _told(found: dict[str, Any]) -> Iterator[None]:
    """Why it cannot be loaded, in the place of what a load would take."""
    try:
        yield
    except UmlError as e:
        found["error"] = found["error"] or e.message


def _names(model: Model) -> set[str]:
    from uml.supervisor.formats import title

    known = {model.id, *model.aliases, title(model.file.path)}
    return {name.casefold() for name in known}


def _lines(found: Mapping[str, Any]) -> list[tuple[str, Cell | str]]:
    """The description for people: only what is known."""
    facts = found.get("facts") or {}
    lines: list[tuple[str, Cell | str]] = [("name", Cell(str(found.get("id")), "bold"))]
    if found.get("error"):
        lines.append(("broken", Cell(str(found["error"]), "red")))

    def add(name: str, value: Any) -> None:
        if value not in (None, "", [], {}, 0):
            lines.append((name, str(value)))

    add("title", facts.get("name"))
    add("aliases", ", ".join(found.get("aliases") or []))
    add("type", found.get("type"))
    add("can", ", ".join(found.get("tasks") or facts.get("tasks") or []))
    if "chat_template" in facts and "complete" in (found.get("tasks") or ()):
        add("chat template", "yes" if facts["chat_template"] else "none, completion only")
    add("architecture", facts.get("arch"))
    if facts.get("parameters"):
        add("parameters", _count(facts["parameters"]))
    add("quantisation", found.get("quantization"))
    add("trained context", found.get("context_length"))
    add("layers", facts.get("block_count"))
    add("embedding", facts.get("embedding_length"))
    add("vocabulary", facts.get("vocab_size"))
    add("licence", facts.get("license"))
    add("format", found.get("format"))
    add("size", words.size(found.get("size_bytes")))
    if found.get("backend") or found.get("error") or not found.get("format"):
        add("backend", found.get("backend"))
    else:
        text = f"none: no backend here runs {found['format']} files yet"
        lines.append(("backend", Cell(text, "yellow")))
    add("source", found.get("source"))
    paths = found.get("paths") or ([found["path"]] if found.get("path") else [])
    add("files" if len(paths) > 1 else "file", "\n".join(paths))
    if found.get("created"):
        add("changed", time.strftime("%Y-%m-%d %H:%M", time.localtime(found["created"])))
    add("options", ", ".join(f"{k}={v}" for k, v in (found.get("options") or {}).items()))
    add("state", found.get("state"))
    add("last load", words.seconds(found["load_s"]) if found.get("load_s") else None)
    return [*lines, *_memory(found), *_speed(found.get("bench") or {}), *_crash(found)]


def _crash(found: Mapping[str, Any]) -> list[tuple[str, Cell | str]]:
    """Why it is left alone, and what is known of its last crash."""
    lines: list[tuple[str, Cell | str]] = []
    failed, crash = found.get("failed") or {}, found.get("last_crash") or {}
    if failed:
        again = words.until(failed.get("until"))
        lines.append(("failed", Cell(f"{failed.get('cause')}\ntried again {again}", "red")))
    if crash:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(crash["at"]))
        lines.append(("last crash", f"{when} {crash['cause']}\n{crash['report']}"))
    if failed.get("stderr"):
        lines.append(("stderr", "\n".join(failed["stderr"])))
    return lines


def _speed(bench: Mapping[str, Any]) -> list[tuple[str, Cell | str]]:
    """What `uml bench` found last."""
    if not bench:
        return []
    lines = [
        f"{count} streams {f['tokens_per_s']:.1f} tok/s, "
        f"first token {words.seconds(f['first_p50_s'])}"
        for count, f in bench["streams"].items()
    ]
    load, swap = bench.get("load") or {}, bench.get("swap")
    if load:
        lines.append(
            f"load to first token {words.seconds(load.get('first_s'))}, "
            f"release {words.seconds(load.get('release_s'))}"
        )
    if swap:
        lines.append(f"swap with {swap['with']} {words.seconds(swap['first_s'])}")
    lines.append(time.strftime("measured %Y-%m-%d %H:%M", time.localtime(bench.get("at"))))
    return [("speed", "\n".join(lines))]


def _memory(found: Mapping[str, Any]) -> list[tuple[str, Cell | str]]:
    """The estimate beside what was measured, and how far off it was."""
    guess, measured = found.get("estimate") or {}, found.get("footprint")
    lines: list[tuple[str, Cell | str]] = []
    if not guess:
        return lines
    if ranks := found.get("quantisations"):
        said = ", ".join(f"{name} ({_RANKS[rank]})" for name, rank in ranks.items())
        lines.append(("on disk", f"{said}; `{found['id']}:best` takes the best that fits"))
    if found.get("backend"):
        lines.append(("place", str(found.get("place") or "-")))
    if found.get("chosen"):
        lines.append(("chosen", f"{found['chosen']}, for want of memory"))
    if not found.get("fits", True):
        lines.append(("fits", Cell("not on this machine, whatever is unloaded", "red")))
    parts = ", ".join(
        f"{words.size(guess[key])} {name}"
        for key, name in (
            ("weights_bytes", "weights"),
            ("kv_bytes", "context"),
            ("compute_bytes", "compute"),
            ("process_bytes", "process"),
            ("draft_bytes", "draft model"),
        )
        if guess.get(key)
    )
    if not found.get("backend"):
        parts += "; and what the backend's own process takes"
    lines.append(("estimate", f"{words.size(guess['total_bytes'])}: {parts}"))
    if measured:
        off = found.get("estimate_error") or 0.0
        text = f"{words.on_devices(measured)} at most; the estimate is {abs(off):.1%} "
        lines.append(("measured", text + ("above" if off > 0 else "below")))
    elif found.get("backend"):
        lines.append(("measured", Cell("not loaded yet with these options", "dim")))
    if guess.get("projector_bytes"):
        projector, encoding = guess["projector_bytes"], guess["encoding_bytes"]
        text = f"{words.size(projector)} projector, {words.size(encoding)} for an image"
        used = guess.get("projector_loaded")
        lines.append(("with images", text if used else f"{text}; no backend here loads it yet"))
    if guess.get("parked_bytes"):
        kept = f"{words.size(guess['parked_bytes'])} for conversations that are parked"
        lines.append(("besides", kept))
    return lines


def _count(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f} {name}"
    return str(parameters)


def remove(args: argparse.Namespace) -> int:
    client = remote.running(args)
    if client:
        paths = client.models.delete(args.model).files or []
    else:
        with remote.registry(remote.load()) as registry:
            paths = registry.remove(args.model)
    if args.json:
        output.print_json({"id": args.model, "deleted": True, "files": paths})
    else:
        output.say(f"removed {args.model}")
    return 0
