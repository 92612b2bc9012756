"""What a request says beside its task: which model, how long it stays, how much context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest, TaskNotSupported
from uml.supervisor import drafts
from uml.supervisor.api.fields import Fields
from uml.supervisor.units import DURATION_FORMS, parse_duration

if TYPE_CHECKING:
    from uml.supervisor.registry import Model, Registry

#: Most that a request may ask for; what fits is decided by the pool.
_MOST_CONTEXT = 1 << 24


@dataclass(frozen=True)
class Wishes:
    """asked: the model's name as the client wrote it, echoed in answers. keep_alive_s: negative =
    for ever, 0 = unload after this answer, None = the default. options: {"n_ctx", "draft_model"}
    as far as they were asked for, or None."""

    asked: str
    model: Model
    keep_alive_s: float | None = None
    options: dict[str, Any] | None = None

    def for_task(self, verb: str) -> Wishes:
        """Itself, when the model can do it. Raises: TaskNotSupported."""
        facts = self.model.facts
        if facts is not None and verb not in facts.tasks:
            can = ", ".join(facts.tasks) or "nothing that is served here"
            raise TaskNotSupported(
                f"{self.model.id} is a model of type {facts.type} and cannot {verb}; it can: {can}",
                param="model",
            )
        return self


def read_wishes(body: Mapping[str, Any], headers: Mapping[str, str], registry: Registry) -> Wishes:
    """keep_alive: the body's field, else the `X-Keep-Alive` header, else the model's `@30m`.

    Raises: BadRequest, ModelNotFound, InvalidModel.
    """
    fields = Fields(body)
    name, suffix = split_name(fields.required_text("model"))
    keep_alive = keep_alive_of(fields.raw("keep_alive")[1], "keep_alive")
    if keep_alive is None:
        keep_alive = keep_alive_of(headers.get("X-Keep-Alive"), "X-Keep-Alive")
    if keep_alive is None:
        keep_alive = suffix
    options = read_options(body)
    return Wishes(name, registry.find(name), keep_alive, options)


def split_name(name: str) -> tuple[str, float | None]:
    """("model", seconds) of `model@30m`; a name whose end is no duration stays as it is."""
    base, at, suffix = name.rpartition("@")
    if at and base:
        try:
            return base, parse_duration(suffix)
        except ValueError:
            pass
    return name, None


def keep_alive_of(value: object, param: str) -> float | None:
    """Seconds. Raises: BadRequest."""
    if value is None or value == "":
        return None
    try:
        return parse_duration(value)
    except ValueError:
        raise BadRequest(f"'{param}' must be {DURATION_FORMS}", param=param) from None


def read_options(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the load depends on, at the top or in Ollama's `options`: `num_ctx`, `draft_model`."""
    top = Fields(body)
    found: dict[str, Any] = {}
    for fields in (Fields(top.table("options") or {}, "options"), top):
        n_ctx = fields.whole("num_ctx", "n_ctx", low=1, high=_MOST_CONTEXT)
        asked = {"n_ctx": n_ctx, drafts.KEY: fields.text(drafts.KEY) or None}
        found |= {k: v for k, v in asked.items() if v is not None}
    return found or None
