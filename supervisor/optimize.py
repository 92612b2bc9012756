"""Chooses what nobody has fixed, so that a model runs as well as the memory allows. Pure.

Tried in order of preference: the defaults; a pool of cells for one full context and few slots; keys
and values in 8 bits; then the same with the context halved, again and again. The first that fits
whole on an accelerator (or in RAM, where there is none) is taken. Rather than with a context below
`COMFORT` a model runs partly on the accelerator, and rather than not at all with any.

What a configuration or a request says is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from uml.protocol.models import ModelFacts
from uml.supervisor.budget import Bytes, DeviceMemory

GB = 1_000_000_000
#: Tokens below which a context is no good for a conversation.
COMFORT = 2048
_LEAST_CONTEXT = 512
_FEW_SLOTS = 4
#: Layers that stay on accelerators after one was full, as a share.
_KEPT_LAYERS = 0.75
#: Where keys and values in 8 bits are tried: they need flash attention.
_SMALL_CACHE = "q8_0"


@dataclass(frozen=True)
class Profile:
    """What a machine of this size is good for. least_bytes: of memory for models; n_ctx: default
    context of what runs on an accelerator; starter: a model to begin with, for `uml pull`."""

    name: str
    least_bytes: int
    n_ctx: int
    starter: str


#: In RAM prompts are computed slowly: there the default context is the first one's in any case.
PROFILES = (
    Profile("8 GB", 0, 4096, "starter/chat"),
    Profile("16 GB", 15 * GB, 8192, "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M"),
    Profile("24 GB", 23 * GB, 16384, "hf:Qwen/Qwen3-14B-GGUF:Q4_K_M"),
    Profile("48 GB", 47 * GB, 32768, "hf:Qwen/Qwen3-32B-GGUF:Q4_K_M"),
)


def profile(devices: Sequence[DeviceMemory]) -> tuple[Profile, str]:
    """(the profile of this machine, the kind of memory it was judged by)."""
    sizes: Bytes = {}
    for d in devices:
        sizes[d.kind] = sizes.get(d.kind, 0) + d.total_bytes
    kind = max((k for k in sizes if k != "ram"), key=lambda k: sizes[k], default="ram")
    fitting = [p for p in PROFILES if sizes.get(kind, 0) >= p.least_bytes]
    return fitting[-1], kind


class Rank(IntEnum):
    """How well a variant runs."""

    WHOLE = 0
    PARTLY = 1
    RAM = 2
    NOWHERE = 3


@dataclass(frozen=True)
class Variant:
    """changes: over what was given. why: in words. comfortable: its context is worth having."""

    changes: dict[str, Any]
    why: str = ""
    comfortable: bool = True


def variants(
    facts: ModelFacts, given: Mapping[str, Any], resolved: Mapping[str, Any]
) -> Iterator[Variant]:
    """Ways to run a model, best first. given: what is fixed; resolved: with the defaults."""
    yield Variant({})
    if facts.format != "gguf" or facts.type in ("embedding", "rerank"):
        return
    full = int(resolved["n_ctx"])
    tight = {k: v for k, v in (("slots", _FEW_SLOTS),) if k not in given}
    small = {k: _SMALL_CACHE for k in ("cache_type_k", "cache_type_v") if k not in given}
    if resolved.get("flash_attention") == "off":
        small.pop("cache_type_v", None)  # llama.cpp refuses it
    context = full
    while context >= min(full, _LEAST_CONTEXT):
        changes: dict[str, Any] = {} if context == full else {"n_ctx": context}
        words = [] if context == full else [f"context {context} instead of {full}"]
        comfortable = context >= min(full, COMFORT)
        if changes:
            yield Variant(dict(changes), _join(words), comfortable)
        if "kv_cells" not in given:
            changes = {**changes, **tight, "kv_cells": context}
            words = [*words, "cells for one full context"]
            yield Variant(dict(changes), _join(words), comfortable)
        if small:
            words = [*words, f"keys and values as {_SMALL_CACHE}"]
            yield Variant({**changes, **small}, _join(words), comfortable)
        if "n_ctx" in given:
            return
        context //= 2


Outcome = TypeVar("Outcome")


def choose(
    ways: Iterator[Variant], attempt: Callable[[Variant], tuple[Rank, Outcome]]
) -> tuple[Rank, Outcome]:
    """The best of `ways`; of those that fit nowhere the smallest. attempt: tries one."""
    found: list[tuple[tuple[bool, bool, int, int], tuple[Rank, Outcome]]] = []
    for index, way in enumerate(ways):
        tried = attempt(way)
        rank = tried[0]
        if rank is Rank.WHOLE and way.comfortable:
            return tried
        nowhere = rank is Rank.NOWHERE
        found.append(((nowhere, not way.comfortable and not nowhere, rank, index), tried))
    if all(key[0] for key, _ in found):
        return found[-1][1]
    return min(found, key=lambda pair: pair[0])[1]


def degraded(options: Mapping[str, Any], layers: int) -> dict[str, Any] | None:
    """What to run with after memory ran out in a load with `options`: half the context, a quarter
    of the layers less on accelerators. layers: of the model, the tail counted. None = no less is
    possible."""
    context = int(options.get("n_ctx") or 0)
    changes: dict[str, Any] = {}
    if context > _LEAST_CONTEXT:
        changes["n_ctx"] = max(_LEAST_CONTEXT, context // 2)
    if options.get("devices") and layers > 1:
        on = int(options.get("n_gpu_layers") or 0)
        changes["n_gpu_layers"] = max(1, int((layers if on < 0 else on) * _KEPT_LAYERS))
    return changes or None


def _join(words: Sequence[str]) -> str:
    return ", ".join(words)
