"""Which projector (an `mmproj` file: images or sound to embeddings) belongs to which model: pure.

They come as two files of one folder. A projector makes embeddings as wide as its model's, and is
named after it (`mmproj-NAME-f16.gguf`) or after nothing (`mmproj-f16.gguf`), where a folder holds
one model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass

from uml.protocol.models import ModelFacts
from uml.supervisor.names import split_name


@dataclass(frozen=True)
class Part:
    """A file. projector: the path of its projector, where its store says so."""

    path: str
    name: str
    facts: ModelFacts | None
    projector: str | None = None


def attach(parts: Iterable[Part]) -> dict[str, ModelFacts]:
    """Path -> facts of every model; a model with a projector is multimodal and names it in
    `extra["projector"]`, its weights in `extra["projector_bytes"]` and what encodes images or sound
    in `extra["encoders"]`. Projectors are no models of their own."""
    known = [(part, part.facts) for part in parts if part.facts]
    projectors = [(p, f) for p, f in known if f.type == "projector"]
    models = [(p, f) for p, f in known if f.type != "projector"]
    found = {}
    for part, facts in models:
        path = part.projector
        if not path and facts.type == "llm":
            names = {
                _plain(p) for p, f in models if _folder(p) == _folder(part) and _fits(f, facts)
            }
            able = [
                p.path
                for p, f in projectors
                if _folder(p) == _folder(part)
                and f.extra.get("projection_dim") in (0, None, facts.embedding_length)
                and _named_after(_plain(p), _plain(part), alone=len(names) == 1)
            ]
            path = min(able, key=lambda p: ("f16" not in p.lower(), p)) if able else None
        of_it = next((f for p, f in projectors if p.path == path), None)
        found[part.path] = _with(facts, path, of_it) if path else facts
    return found


def _fits(other: ModelFacts, facts: ModelFacts) -> bool:
    return other.embedding_length == facts.embedding_length


def _with(facts: ModelFacts, path: str, projector: ModelFacts | None) -> ModelFacts:
    extra = facts.extra | {"projector": path}
    if projector:
        extra["projector_bytes"] = projector.weights_bytes
        extra["encoders"] = projector.extra.get("encoders", {})
    return dataclasses.replace(facts, type="multimodal", extra=extra)


def _folder(part: Part) -> str:
    return os.path.dirname(part.path)


def _plain(part: Part) -> str:
    """The name without quantisation and "mmproj"."""
    words = split_name(part.name)[0].replace(".", "-").split("-")
    return "-".join(w for w in words if w not in ("mmproj", "model"))


def _named_after(projector: str, model: str, *, alone: bool) -> bool:
    return projector in model or model in projector if projector else alone
