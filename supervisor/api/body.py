"""The JSON object in a request's body, or the reason why there is none."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from uml.protocol.errors import BadRequest, TooLarge, UnsupportedMediaType

#: Deeper than any schema or template needs, and shallower than any limit of the wire.
MAX_DEPTH = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: web.Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object; {} without a body where that is `optional`.

    Raises: UnsupportedMediaType, TooLarge, BadRequest.
    """
    if not request.body_exists or request.content_length == 0:
        if optional:
            return {}
        raise BadRequest("the body is empty: send a JSON object")
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"the body's content type is {request.content_type}: "
            "send Content-Type: application/json"
        )
    limit = request.client_max_size
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit) from None
    if not raw and optional:
        return {}
    return parse_object(raw)


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes")


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object out of bytes. Raises: BadRequest for anything else."""
    try:
        found = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as e:
        raise BadRequest(f"the body is not UTF-8: byte {e.start}") from None
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None
    except ValueError as e:
        raise BadRequest(f"the body is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(found, MAX_DEPTH):
        raise BadRequest(_TOO_DEEP)
    if _SURROGATE.search(raw):
        _refuse_lone_surrogates(found)
    return found


_TOO_DEEP = f"the body is nested deeper than {MAX_DEPTH} levels"


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"the body is not JSON: {name} is not a JSON value")


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        below = (v for node in layer for v in (node.values() if isinstance(node, dict) else node))
        layer = [v for v in below if isinstance(v, (dict, list))]
        if not layer:
            return False
    return True


def _refuse_lone_surrogates(value: dict[str, Any]) -> None:
    """Half a UTF-16 pair is no character: it cannot be sent on."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the body holds half a UTF-16 surrogate pair") from None
