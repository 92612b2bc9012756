"""A JSON schema brought to the form in which llguidance makes the grammar of it: pure.

llguidance (MIT, by Microsoft's guidance project) was taken, and not llama-cpp-python's
`json_schema_to_gbnf`, because that one passes over what it does not know, so that answers do not
obey, and llama.cpp's grammars cost a look at the whole vocabulary per token. llguidance refuses
what it cannot keep and computes a mask in microseconds. It is also what OpenAI's own structured
outputs run on, so the subset is the one people know.

Everything done here leaves fewer values than the schema allows, never more:

- an object that names its properties gets no others, unless the schema says that it may;
- where the type is not said, the keywords beside it decide;
- no white space but one space after a comma or colon: weak models never stop writing it.
"""

from __future__ import annotations

import json
from typing import Any

#: Keywords that mean nothing for values of other types, and the type.
_IMPLIED = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties"),
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def as_json(schema: dict[str, Any], *, lenient: bool = False) -> str:
    """The schema as llguidance reads it. lenient: what it does not know is passed over instead of
    refused."""
    closed = not _joins(schema)
    prepared = _prepared(schema, closed)
    prepared["x-guidance"] = {
        "whitespace_flexible": False,
        "item_separator": ", ?",
        "key_separator": ": ?",
        "lenient": lenient,
    }
    return json.dumps(prepared)


def moved(schema: Any, place: str) -> Any:
    """The schema with its references as they have to be when it stands at `place`, a JSON pointer,
    in another one."""
    if isinstance(schema, list):
        return [moved(inner, place) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#{place}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("enum", "const")
        else moved(value, place)
        for key, value in schema.items()
    }


def _joins(node: Any) -> bool:
    """Whether objects of several schemas meet in one value somewhere: none may be closed then."""
    if isinstance(node, list):
        return any(map(_joins, node))
    if not isinstance(node, dict):
        return False
    combined = sum(keyword in node for keyword in _COMBINED)
    if "allOf" in node and (len(node["allOf"]) > 1 or combined > 1 or "properties" in node):
        return True
    if combined and ("properties" in node or combined > 1):
        return True
    return any(_joins(value) for key, value in node.items() if key not in ("enum", "const"))


def _prepared(node: Any, closed: bool) -> Any:
    if not isinstance(node, dict):
        return node
    out = {key: _inner(key, value, closed) for key, value in node.items() if key[:2] != "x-"}
    kinds = [kind for kind, words in _IMPLIED.items() if any(word in node for word in words)]
    if "type" not in out and kinds and not {"enum", "const", *_COMBINED} & set(out):
        out["type"] = kinds
    if closed and "properties" in out and "patternProperties" not in out:
        out.setdefault("additionalProperties", False)
    if out.pop("nullable", False) is True:
        out = _or_null(out)
    return out


def _inner(keyword: str, value: Any, closed: bool) -> Any:
    if keyword in _MAPS and isinstance(value, dict):
        return {name: _prepared(inner, closed) for name, inner in value.items()}
    if keyword in _LISTS and isinstance(value, list):
        return [_prepared(inner, closed) for inner in value]
    return _prepared(value, closed) if keyword in _SINGLE else value


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's `nullable`; what references point at stays where it is, as far as it can."""
    if "const" not in node and isinstance(node.get("type"), (str, list)):
        kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
        enum = {"enum": [*node["enum"], None]} if "enum" in node else {}
        return node | enum | {"type": [*dict.fromkeys([*kinds, "null"])]}
    kept: dict[str, Any] = {key: node.pop(key) for key in ("$defs", "definitions") if key in node}
    return {**kept, "anyOf": [node, {"type": "null"}]}
