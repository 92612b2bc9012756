"""The outermost layer of every request: its id, the gate, errors in OpenAI's shape, the log."""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable

from aiohttp import web

from uml.protocol.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    UmlError,
    Unauthorized,
)
from uml.supervisor.api.body import too_large
from uml.supervisor.api.gateway import GATEWAY, REQUEST_ID, Gateway

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ID = re.compile(r"[A-Za-z0-9._:-]{1,80}")
#: The status a log gets for a request whose client left.
_GONE = 499


def error_response(error: UmlError) -> web.Response:
    """The whole answer for an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status >= 500 and not error.retryable:
        # Or OpenAI's clients ask twice more. Source: openai-python, _should_retry.
        headers["X-Should-Retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(error.to_openai(), status=error.status, headers=headers)


def error_event(error: UmlError) -> str:
    """An error as the last event of a stream whose headers are out."""
    return f"data: {json.dumps(error.to_openai())}\n\n"


def shield(error: BaseException, gateway: Gateway, request: web.BaseRequest) -> UmlError:
    """What a client is told of any exception. Bugs are logged and not shown."""
    if isinstance(error, UmlError):
        return error
    told = "".join(traceback.format_exception(error))
    gateway.events.emit("http.bug", "error", path=request.path, id=REQUEST_ID.get(), traceback=told)
    return InternalError(f"an internal error; the log has it under {REQUEST_ID.get()}")


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nothing but OpenAI's error shape leaves through here."""
    gateway = request.app[GATEWAY]
    started = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    REQUEST_ID.set(given if _ID.fullmatch(given) else f"req_{secrets.token_hex(8)}")
    status = _GONE
    response: web.StreamResponse
    try:
        try:
            response = gateway.gate.preflight(request) or await _admitted(request, handler)
        except UmlError as e:
            response = error_response(e)
        except web.HTTPException as e:
            response = error_response(_from_aiohttp(e, request))
            if "Allow" in e.headers:
                response.headers["Allow"] = e.headers["Allow"]
        except ConnectionResetError:  # the client left while we wrote
            raise asyncio.CancelledError from None
        except Exception as e:
            response = error_response(shield(e, gateway, request))
        status = response.status
        return response
    finally:
        _log(gateway, request, status, time.perf_counter() - started)


async def _admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    request.app[GATEWAY].gate.check(request)
    return await handler(request)


async def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response, just before they go."""
    response.headers["Server"] = "uml"
    response.headers["X-Request-Id"] = REQUEST_ID.get()
    response.headers.update(request.app[GATEWAY].gate.cors_headers(request))


def _from_aiohttp(error: web.HTTPException, request: web.Request) -> UmlError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method} is not accepted here, {allowed} is")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return too_large(request.client_max_size)
    if error.status == 404:
        return NotFound(f"nothing is served at {request.path}")
    return BadRequest(error.reason) if 400 <= error.status < 500 else InternalError(error.reason)


def _log(gateway: Gateway, request: web.Request, status: int, elapsed_s: float) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "none"
    gateway.answers[route, request.method, status] += 1
    quiet = request.method in ("GET", "HEAD") and (status < 400 or status == _GONE)
    gateway.events.emit(
        "http.request",
        "debug" if quiet else "warning" if status >= 500 else "info",
        method=request.method,
        path=request.path,
        status=status,
        ms=round(elapsed_s * 1000, 2),
        id=REQUEST_ID.get(),
    )
