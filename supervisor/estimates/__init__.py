"""How much memory a model will take, from its header alone: pure; one module per format.

A format's module has two functions:

    resolve(facts, given) -> options     every size filled in; Raises: BadRequest, naming the option
    estimate(facts, options, process_bytes) -> MemoryEstimate     options: resolved

`resolve` is the one place where sizes are decided (context, slots, pool cells, batch): the worker
is told every number and guesses none. Deciding twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates import fake, gguf, piper, plain, safetensors, whisper

__all__ = ["FORMATS", "Format", "estimate", "resolve_options"]


class Format(Protocol):
    """What a format's module has to offer."""

    def resolve(self, facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]: ...

    def estimate(
        self, facts: ModelFacts, options: Mapping[str, Any], process_bytes: int
    ) -> MemoryEstimate: ...


#: `ModelFacts.format` -> its arithmetic; a format without one (a plugin's) is its weights.
FORMATS: dict[str, Format] = {
    "gguf": gguf,
    "whisper": whisper,
    "piper": piper,
    "safetensors": safetensors,
    "fake": fake,
}


def resolve_options(facts: ModelFacts, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` over what the model's file says of itself, with every size filled in.

    Raises: BadRequest, naming the option.
    """
    said = {k: v for k, v in options.items() if v is not None}
    return _of(facts).resolve(facts, {**facts.extra.get("options", {}), **said})


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    """Bytes by what needs them. options: resolved. process_bytes: of the bare worker."""
    return _of(facts).estimate(facts, options, process_bytes)


def _of(facts: ModelFacts) -> Format:
    return FORMATS.get(facts.format, plain)
