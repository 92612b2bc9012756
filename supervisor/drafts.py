"""Draft models: a second, small model in a worker, which guesses what the first will say.

A token's number has to mean the same to both, so their vocabularies are compared, from the files'
headers, before anything is loaded. The draft runs with the sizes of its model, but with cells of
its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest, InvalidModel, ModelNotFound
from uml.protocol.models import MemoryEstimate
from uml.supervisor.estimates import estimate, gguf
from uml.supervisor.formats.gguf_header import read_vocabulary

if TYPE_CHECKING:
    from uml.supervisor.registry import Model, Registry

#: The option that names it: a model's id, or another of its names.
KEY = "draft_model"
#: The first tokens are each model's own; the tables of one family are padded to different lengths.
#: Source: llama.cpp's common/speculative.cpp.
_OWN, _PADDING = 5, 128


def draft_of(model: Model, options: Mapping[str, Any], registry: Registry) -> Model | None:
    """The draft that `options` name for `model`.

    Raises: BadRequest, where it cannot be one, saying why and what to do.
    """
    name = options.get(KEY)
    if not name:
        return None
    try:
        draft = registry.find(str(name))
    except (ModelNotFound, InvalidModel) as e:
        raise _refusal(model, str(name), e.message) from e
    for this in (model, draft):
        facts = this.facts
        if facts is None or facts.format != "gguf" or facts.type not in ("llm", "multimodal"):
            raise _refusal(model, draft.id, f"{this.id} is no GGUF model that writes text")
        if facts.recurrent:
            raise _refusal(model, draft.id, f"{this.id} is recurrent and takes no token back")
    if why := _differ(model.file.path, draft.file.path, model.content_hash, draft.content_hash):
        raise _refusal(model, draft.id, why)
    return draft


def resolve(draft: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's `options` say with the draft: its name as it is known here, which file that
    is, how many cells it has. options: the model's, resolved."""
    assert draft.facts is not None
    cells = int(options.get("draft_cells") or min(options["kv_cells"], 2 * options["n_ctx"]))
    return {
        **options,
        KEY: draft.id,
        "draft_hash": draft.content_hash[:12],
        "draft_cells": gguf.pad(cells),
    }


def beside(guess: MemoryEstimate, draft: Model, options: Mapping[str, Any]) -> MemoryEstimate:
    """`guess` and what the draft takes. options: as `resolve` gives them."""
    assert draft.facts is not None
    own = {**options, "kv_cells": options["draft_cells"], "prefix_cache_bytes": 0}
    more = estimate(draft.facts, own, 0)
    return dataclasses.replace(
        guess,
        draft_bytes=more.model_bytes,
        process_bytes=guess.process_bytes + more.process_bytes,
        arithmetic=f"{guess.arithmetic} + {more.total_bytes / 1e6:.0f} MB draft {draft.id}",
    )


@lru_cache(maxsize=64)
def _differ(model: str, draft: str, *hashes: str) -> str:
    """Why the two files' tokens are not the same; "" if they are. hashes: of the contents."""
    del hashes
    a, b = read_vocabulary(model, _OWN), read_vocabulary(draft, _OWN)
    if abs(a.size - b.size) > _PADDING:
        return f"it has another vocabulary: {b.size} tokens, not {a.size}"
    common = min(len(a.tokens), len(b.tokens))
    if a.kind != b.kind or a.tokens[:common] != b.tokens[:common]:
        return "it has another vocabulary"
    return ""


def _refusal(model: Model, name: str, why: str) -> BadRequest:
    return BadRequest(
        f"{name} cannot be the {KEY} of {model.id}: {why}; name a small model of the same family,"
        f" or leave {KEY} out",
        param=KEY,
    )
