"""What chat and completion share: sampling, limits, stops, structure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import SAMPLERS, Sampling
from uml.supervisor.api.fields import Fields, wrong
from uml.supervisor.api.schemas import check_schema

MAX_CHOICES = 16
_MAX_STOPS = 16
_MAX_TOKENS = 1 << 24
_MAX_BIASES = 4096
_GRAMMAR_CHARS = 1 << 20

#: Field of `Sampling` -> names in a body, least, most.
_NUMBERS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "temperature": (("temperature",), 0, 2),
    "top_p": (("top_p",), 0, 1),
    "min_p": (("min_p",), 0, 1),
    "typical_p": (("typical_p", "typ_p"), 0, 1),
    "top_n_sigma": (("top_n_sigma",), -1, 100),
    "dynatemp_range": (("dynatemp_range",), 0, 2),
    "dynatemp_exponent": (("dynatemp_exponent",), 0, 10),
    "xtc_probability": (("xtc_probability",), 0, 1),
    "xtc_threshold": (("xtc_threshold",), 0, 1),
    "repeat_penalty": (("repeat_penalty", "repetition_penalty"), 0.01, 10),
    "frequency_penalty": (("frequency_penalty",), -2, 2),
    "presence_penalty": (("presence_penalty",), -2, 2),
    "dry_multiplier": (("dry_multiplier",), 0, 100),
    "dry_base": (("dry_base",), 0, 100),
    "mirostat_tau": (("mirostat_tau",), 0, 100),
    "mirostat_eta": (("mirostat_eta",), 0, 1),
    "adaptive_target": (("adaptive_target",), -1, 1),
    "adaptive_decay": (("adaptive_decay",), 0, 0.99),
}
_WHOLES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "top_k": (("top_k",), -1, 1 << 24),
    "penalty_last_n": (("penalty_last_n", "repeat_last_n"), -1, 1 << 24),
    "dry_allowed_length": (("dry_allowed_length",), 0, 1 << 24),
    "dry_penalty_last_n": (("dry_penalty_last_n",), -1, 1 << 24),
    "mirostat": (("mirostat",), 0, 2),
    "min_keep": (("min_keep",), 0, 1 << 24),
}


def read_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Sampling` that are given. Raises: BadRequest."""
    fields = Fields(body)
    given: dict[str, Any] = {}
    for name, (names, low, high) in _NUMBERS.items():
        given[name] = fields.number(*names, low=low, high=high)
    for name, (names, least, most) in _WHOLES.items():
        given[name] = fields.whole(*names, low=least, high=most)
    if given["top_k"] == -1:  # vLLM's way to say off
        given["top_k"] = 0
    seed = fields.whole("seed", low=-(1 << 63), high=(1 << 64) - 1)
    if seed is not None and seed != -1:  # -1 is llama.cpp's way to say random
        given["seed"] = seed % (1 << 31)
    if fields.raw("dry_sequence_breakers")[1] is not None:
        given["dry_sequence_breakers"] = _texts(fields, "dry_sequence_breakers", 64)
    given["samplers"] = _samplers(fields)
    given["logit_bias"] = _logit_bias(fields)
    return {name: value for name, value in given.items() if value is not None}


def read_generate(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Generate`, but for `top_logprobs`. defaults: the model's own sampling, as in
    the configuration. Raises: BadRequest."""
    fields = Fields(body)
    schema, grammar = _structure(fields)
    sampling = Sampling(**{**read_sampling(defaults), **read_sampling(body)})
    return {
        "max_tokens": _max_tokens(fields),
        "stop": _texts(fields, "stop", _MAX_STOPS),
        "n": fields.whole("n", low=1, high=MAX_CHOICES) or 1,
        "sampling": sampling,
        "grammar": grammar,
        "json_schema": schema,
        "ignore_eos": fields.flag("ignore_eos") or False,
        "seeded": sampling.seed is not None,
    }


def read_stream(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """(stream, include_usage). Raises: BadRequest."""
    fields = Fields(body)
    stream = fields.flag("stream") or False
    options = fields.table("stream_options")
    if options is not None and not stream:
        raise BadRequest("'stream_options' needs 'stream': true", param="stream_options")
    usage = Fields(options or {}, "stream_options").flag("include_usage")
    return stream, usage or False


def _max_tokens(fields: Fields) -> int | None:
    names = ("max_completion_tokens", "max_tokens", "n_predict")
    param, value = fields.raw(*names)
    if value == -1 and not isinstance(value, bool):  # llama.cpp's way to say no limit
        return None
    if value == 0:
        raise wrong(param, f"a whole number from 1 to {_MAX_TOKENS}", value)
    return fields.whole(*names, low=1, high=_MAX_TOKENS)


def _texts(fields: Fields, name: str, most: int) -> list[str]:
    param, value = fields.raw(name)
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    wanted = f"a string or a list of at most {most} strings, none of them empty"
    if not isinstance(texts, list) or len(texts) > most:
        raise wrong(param, wanted, value)
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise wrong(f"{param}[{index}]" if texts is value else param, wanted, text)
    return texts


#: llama-server's letters and other names of samplers.
_LETTERS = dict(zip("edskypmxtai", (*SAMPLERS, "infill"), strict=True))
_SYNONYMS = {"typical_p": "typ_p", "typical": "typ_p", "temp": "temperature"}


def _samplers(fields: Fields) -> list[str] | None:
    """The order of samplers: names or, as llama-server has it too, a string of letters."""
    param, value = fields.raw("samplers")
    if value is None:
        return None
    if isinstance(value, str):
        value = [_LETTERS.get(letter, letter) for letter in value]
    if not isinstance(value, list):
        raise wrong(param, "a list of samplers' names", value)
    known = (*SAMPLERS, "infill")
    names = [_SYNONYMS.get(name, name) if isinstance(name, str) else name for name in value]
    for index, name in enumerate(names):
        if name not in known:
            raise wrong(f"{param}[{index}]", "one of " + ", ".join(known), name)
    return names


def _logit_bias(fields: Fields) -> dict[str, float] | None:
    table = fields.table("logit_bias")
    if table is None:
        return None
    if len(table) > _MAX_BIASES:
        raise BadRequest(f"'logit_bias' has more than {_MAX_BIASES} entries", param="logit_bias")
    inner = Fields(table, "logit_bias")
    biases: dict[str, float] = {}
    for token in table:
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise wrong("logit_bias", "an object whose keys are token ids", token)
        biases[str(int(token))] = inner.number(token, low=-100, high=100) or 0.0
    return biases


def _structure(fields: Fields) -> tuple[dict[str, Any] | None, str | None]:
    """(json_schema, grammar): at most one of them."""
    schema = _response_format(fields)
    top = fields.table("json_schema")
    if top is not None:
        check_schema(top, "json_schema")
    grammar = fields.text("grammar", limit=_GRAMMAR_CHARS) or None
    if sum(x is not None for x in (schema, top, grammar)) > 1:
        raise BadRequest(
            "only one of 'response_format', 'json_schema' and 'grammar' can decide the form",
            param="grammar" if grammar else "json_schema",
        )
    return (top if schema is None else schema), grammar


def _response_format(fields: Fields) -> dict[str, Any] | None:
    form = fields.table("response_format")
    if form is None:
        return None
    inner = Fields(form, "response_format")
    inner.required("type")
    match inner.choice("type", "text", "json_object", "json_schema"):
        case "json_object":
            schema = inner.table("schema") or {}
            check_schema(schema, "response_format.schema")
            return schema
        case "json_schema":
            inner.required("json_schema")
            named = Fields(inner.table("json_schema") or {}, "response_format.json_schema")
            named.required("schema")
            named.flag("strict")
            schema = named.table("schema") or {}
            check_schema(schema, named.path("schema"))
            return schema
    return None
