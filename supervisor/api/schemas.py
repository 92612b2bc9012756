"""Which JSON schemas an answer can be made to obey: pure, before a worker is bothered.

What is not in `KEYWORDS` is refused by name and place, because a keyword that is silently passed
over gives answers that do not obey. What passes here may still be impossible in itself (a minimum
above the maximum): the worker says that. docs/structured-output.md is the table for people.
Source: JSON Schema 2020-12, core and validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from uml.protocol.errors import BadRequest

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = (
    *("date-time", "date", "time", "duration", "email"),
    *("hostname", "ipv4", "ipv6", "uuid", "uri"),
)
#: Say something to people or programs, and nothing about the value.
ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "$comment", "discriminator", "externalDocs", "xml"),
        *("contentEncoding", "contentMediaType"),
    )
)
_MAX_DEPTH = 100
_MAX_NODES = 20_000
_MAX_COUNT = 100_000

Node = Any
Walk = list[tuple[str, Node]]


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raises: BadRequest that names the keyword and the JSON pointer of where it stands."""
    try:
        nodes = dict(_walk(schema))
        for pointer, node in nodes.items():
            _check_node(pointer, node, schema)
        _check_ends(nodes)
    except _Unfit as e:
        raise BadRequest(
            f"'{param}' cannot be obeyed: {e} (supported: docs/structured-output.md)", param=param
        ) from None


class _Unfit(Exception):
    def __init__(self, why: str, pointer: str) -> None:
        super().__init__(f"{why} at {pointer or 'the root'}")


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Node]]:
    """Every subschema with its JSON pointer, definitions included."""
    waiting: list[tuple[str, Node, int]] = [("", schema, 0)]
    seen = 0
    while waiting:
        pointer, node, depth = waiting.pop()
        seen += 1
        if seen > _MAX_NODES or depth > _MAX_DEPTH:
            raise _Unfit("the schema is too large", pointer)
        if not isinstance(node, (dict, bool)):
            raise _Unfit("a schema has to be an object or a boolean", pointer)
        yield pointer, node
        if isinstance(node, dict):
            waiting += [(p, n, depth + 1) for p, n in _inner(pointer, node)]


def _inner(pointer: str, node: Mapping[str, Any]) -> Walk:
    """The subschemas directly inside."""
    found: Walk = []
    for keyword, value in node.items():
        where = f"{pointer}/{escape(keyword)}"
        if keyword in _MAPS and isinstance(value, dict):
            found += [(f"{where}/{escape(name)}", inner) for name, inner in value.items()]
        elif keyword in _LISTS and isinstance(value, list):
            found += [(f"{where}/{i}", inner) for i, inner in enumerate(value)]
        elif keyword in _SINGLE:
            found.append((where, value))
    return found


def escape(name: str) -> str:
    """A name as a part of a JSON pointer. Source: RFC 6901."""
    return name.replace("~", "~0").replace("/", "~1")


def _check_node(pointer: str, node: Node, root: Mapping[str, Any]) -> None:
    if isinstance(node, bool):
        return
    for keyword, value in node.items():
        if keyword in ANNOTATIONS or keyword.startswith("x-"):
            continue
        check = KEYWORDS.get(keyword)
        if check is None:
            raise _Unfit(f"the keyword '{keyword}' is not supported", pointer)
        wanted, fits = check
        if keyword == "format" and not _may_be_text(node):
            continue  # int32 and the like
        if not fits(value):
            where = f"{pointer}/{escape(keyword)}"
            raise _Unfit(f"'{keyword}' has to be {wanted}", where)
    if "$ref" in node and _resolve(root, node["$ref"]) is None:
        raise _Unfit(f"'$ref' leads nowhere: {node['$ref']!r}", pointer)
    # Further keys are free, and nothing keeps a key from being written twice.
    known = len(set(node.get("required", ())))
    if node.get("minProperties", 0) > max(1, known):
        raise _Unfit("'minProperties' above 1 and above what is required cannot be kept", pointer)


def _resolve(root: Mapping[str, Any], reference: str) -> Node | None:
    """What a reference within the document points at. Source: RFC 6901."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node if isinstance(node, (dict, bool)) else None


def _check_ends(nodes: Mapping[str, Node]) -> None:
    """A schema that holds itself has to have a way out, or no answer would ever be complete."""
    ends: set[str] = set()
    left = [(pointer, node) for pointer, node in nodes.items() if node is not False]
    while True:
        more = [(p, n) for p, n in left if n is True or _can_end(p, n, ends)]
        if not more:
            break
        ends.update(pointer for pointer, _ in more)
        left = [(pointer, node) for pointer, node in left if pointer not in ends]
    if "" not in ends:
        raise _Unfit("no value can ever be complete: a '$ref' or 'false' leads round in it", "")


def _can_end(pointer: str, node: Mapping[str, Any], ends: set[str]) -> bool:
    if "$ref" in node and node["$ref"].removeprefix("#") not in ends:
        return False
    if any(f"{pointer}/allOf/{i}" not in ends for i in range(len(node.get("allOf", ())))):
        return False
    for keyword in ("anyOf", "oneOf"):
        branches = range(len(node.get(keyword, ())))
        if branches and not any(f"{pointer}/{keyword}/{i}" in ends for i in branches):
            return False
    if "enum" in node or "const" in node:
        return True
    kinds = node.get("type", TYPES)
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if kinds - {"object", "array"}:
        return "type" in node or not ({"properties", "items", "prefixItems"} & set(node))
    if "object" in kinds:
        inner = node.get("properties", {})
        if all(
            f"{pointer}/properties/{escape(name)}" in ends
            for name in node.get("required", ())
            if name in inner
        ):
            return True
    if "array" in kinds:
        count, first = node.get("minItems", 0), len(node.get("prefixItems", ()))
        return all(f"{pointer}/prefixItems/{i}" in ends for i in range(min(count, first))) and (
            count <= first or "items" not in node or f"{pointer}/items" in ends
        )
    return False


def _may_be_text(node: Mapping[str, Any]) -> bool:
    kinds = node.get("type", "string")
    return "string" in ([kinds] if isinstance(kinds, str) else kinds)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _type(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list) and bool(names) and all(name in TYPES for name in names)


def _filled(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _anything(value: Any) -> bool:
    return True


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _reference(value: Any) -> bool:
    return isinstance(value, str) and (value == "#" or value.startswith("#/"))


_A_COUNT = (f"a whole number from 0 to {_MAX_COUNT}", _count)
_A_NUMBER = ("a number", _number)
_A_LIST = ("a list that is not empty", _filled)
_A_TABLE = ("an object", _table)
_A_SCHEMA = ("an object or a boolean", lambda value: isinstance(value, (dict, bool)))
#: Keyword -> what its value has to be, in words and as a test.
KEYWORDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": ("one or several of " + ", ".join(TYPES), _type),
    "nullable": ("true or false", lambda value: isinstance(value, bool)),
    "enum": _A_LIST,
    "const": ("a value", _anything),
    "anyOf": _A_LIST,
    "oneOf": _A_LIST,
    "allOf": _A_LIST,
    "$ref": ("a reference within the schema, '#' or '#/...'", _reference),
    "$defs": _A_TABLE,
    "definitions": _A_TABLE,
    "properties": _A_TABLE,
    "required": ("a list of names", _texts),
    "additionalProperties": _A_SCHEMA,
    "patternProperties": _A_TABLE,
    "minProperties": _A_COUNT,
    "maxProperties": _A_COUNT,
    "items": _A_SCHEMA,
    "prefixItems": _A_LIST,
    "minItems": _A_COUNT,
    "maxItems": _A_COUNT,
    "minLength": _A_COUNT,
    "maxLength": _A_COUNT,
    "pattern": ("a regular expression", lambda value: isinstance(value, str)),
    "format": ("one of " + ", ".join(FORMATS), lambda value: value in FORMATS),
    "minimum": _A_NUMBER,
    "maximum": _A_NUMBER,
    "exclusiveMinimum": _A_NUMBER,
    "exclusiveMaximum": _A_NUMBER,
    "multipleOf": ("a number above 0", lambda value: _number(value) and value > 0),
}
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_SINGLE = frozenset(("items", "additionalProperties"))
