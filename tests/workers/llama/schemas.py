"""Random schemas of the documented subset, drawn so that a weak model gets to their end."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("name", "city", "age", "tags", "kind", "note", "size", "on", 'a"b', "é", "x y", "id")
PATTERNS = (
    *(
        "^[a-z]{2,6}$",
        "^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$",
        r"^\d{3}-\d{4}$",
        "^(red|green)-[0-9]$",
    ),
    *(r"^\w{1,8}$", "b{2}", "^#[0-9a-fA-F]{6}$", "^a.c$"),
)
FORMATS = ("date-time", "date", "time", "duration", "ipv4", "ipv6", "uuid", "email", "hostname")
VALUES = (
    "red",
    "grün",
    'say "hi"',
    "a\nb",
    "\\",
    "",
    0,
    -3,
    12,
    2.5,
    True,
    None,
    [1, "a"],
    {"k": []},
)


class Schemas:
    """Draws schemas; every one obeys `supervisor.api.schemas.check_schema`."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._defs: dict[str, Any] = {}

    def draw(self) -> dict[str, Any]:
        self._defs = {}
        if self._chance.random() < 0.3:
            self._recursive()
        schema = self._schema(3)
        if self._chance.random() < 0.5 and schema.get("type") != "object":
            schema = self._object(3)
        return schema | ({"$defs": self._defs} if self._defs else {})

    def _recursive(self) -> None:
        """A list or a tree: a definition that may hold itself."""
        again = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        shape = self._chance.choice(["list", "tree"])
        value = self._scalar()
        if shape == "list":
            properties = {"value": value, "next": again}
            needed = ["value", "next"]
        else:
            items = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
            properties, needed = {"value": value, "children": items}, ["value", "children"]
        self._defs["node"] = {
            "type": "object",
            "properties": properties,
            "required": needed,
            "additionalProperties": False,
        }

    def _schema(self, depth: int) -> dict[str, Any]:
        kinds = [self._scalar] * 4
        if depth > 0:
            kinds += [lambda: self._object(depth), lambda: self._array(depth)]
            kinds += [lambda: self._any_of(depth), lambda: self._all_of(depth), self._reference]
        return self._chance.choice(kinds)()

    def _scalar(self) -> dict[str, Any]:
        c = self._chance
        match c.randrange(12):
            case 0:
                return {"type": "boolean"}
            case 1:
                return {"type": "null", "description": "nothing"}
            case 2:
                return {"const": c.choice(VALUES)}
            case 3 | 4:
                return {"enum": c.sample(VALUES, c.randint(1, 5))}
            case 5 | 6:
                return self._integer()
            case 7:
                return self._number()
            case 8:
                return {"type": "string", "pattern": c.choice(PATTERNS)[:]} | {"maxLength": 20}
            case 9:
                return {"type": "string", "format": c.choice(FORMATS)}
            case 10:
                return {"type": ["string", "null"], "maxLength": 8}
            case _:
                low = c.randint(0, 3)
                return {"type": "string", "minLength": low, "maxLength": low + c.randint(0, 12)}

    def _integer(self) -> dict[str, Any]:
        c = self._chance
        low = c.randint(-2000, 2000)
        bounds: dict[str, Any] = {"type": "integer"}
        bounds[c.choice(["minimum", "exclusiveMinimum"])] = low
        bounds[c.choice(["maximum", "exclusiveMaximum"])] = low + c.randint(3, 500)
        if c.random() < 0.2:
            bounds = {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": c.randint(2, 9)}
        return bounds

    def _number(self) -> dict[str, Any]:
        low = self._chance.choice([-10, -1.5, 0, 0.25])
        return {"type": "number", "minimum": low, "maximum": low + self._chance.choice([1, 7.5])}

    def _object(self, depth: int) -> dict[str, Any]:
        c = self._chance
        names = c.sample(NAMES, c.randint(1, 4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._schema(depth - 1) for name in names},
            "required": c.sample(names, c.randint(1, len(names))),
        }
        extra = c.choice([None, None, False, {"type": "integer", "minimum": 0, "maximum": 9}])
        if extra is not None:
            schema["additionalProperties"] = extra
        if isinstance(extra, dict):
            schema["required"] = names
            schema["maxProperties"] = len(names) + 1
        if c.random() < 0.1:
            return {
                "type": "object",
                "patternProperties": {"^[a-z]{1,5}$": self._scalar()},
                "additionalProperties": False,
                "maxProperties": 2,
            }
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        c = self._chance
        low = c.randint(0, 2)
        schema: dict[str, Any] = {"type": "array", "items": self._schema(depth - 1)}
        if c.random() < 0.3:
            schema["prefixItems"] = [self._scalar() for _ in range(c.randint(1, 2))]
            if c.random() < 0.5:
                schema["items"] = False
                return schema | {"minItems": len(schema["prefixItems"])}
        return schema | {"minItems": low, "maxItems": low + c.randint(0, 2)}

    def _any_of(self, depth: int) -> dict[str, Any]:
        c = self._chance
        if c.random() < 0.4:  # told apart by a tag
            branches = [
                {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "value": self._scalar()},
                    "required": ["kind", "value"],
                    "additionalProperties": False,
                }
                for kind in ("a", "b")
            ]
            return {"oneOf": branches, "discriminator": {"propertyName": "kind"}}
        return {"anyOf": [self._schema(depth - 1) for _ in range(c.randint(2, 3))]}

    def _all_of(self, depth: int) -> dict[str, Any]:
        first, second = self._object(0), self._integer()
        if self._chance.random() < 0.5:
            return {"allOf": [second, {"type": "integer", "minimum": second.get("minimum", -9999)}]}
        return {"allOf": [first]}

    def _reference(self) -> dict[str, Any]:
        if not self._defs:
            return {"type": "integer", "nullable": False, "minimum": 0, "maximum": 3}
        return {"$ref": "#/$defs/node"}
