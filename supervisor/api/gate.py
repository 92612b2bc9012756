"""Who may ask. A browser on this machine is a stranger: any page it shows can send requests here.

- `Host` must be a name we know, or a page could rebind its own name to our address.
- `Origin`, which browsers send with whatever may change state, must be ours or configured.
- The API key, where one is set, is wanted everywhere but at /health and /ready.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from uml.protocol.errors import Forbidden, Unauthorized
from uml.supervisor.config import is_loopback

#: Answered without a key: they say nothing but that we are here.
OPEN_PATHS = frozenset(("/health", "/ready"))
_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_WILDCARDS = frozenset(("0.0.0.0", "::", ""))
_CORS_HEADERS = "Authorization, Content-Type, X-API-Key, X-Keep-Alive, X-Request-Id"
_EXPOSED = "X-Request-Id, X-Model-State, X-Queue-Position, Retry-After"


class Gate:
    """host: what we are bound to. origins: pages that may use us; "*" = all of them."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self._bound = host.strip("[]").lower()
        self._key = api_key.encode() if api_key else None
        self._hosts = {_bare(h) for h in allowed_hosts}
        self._origins = {o.rstrip("/").lower() for o in allowed_origins}

    def check(self, request: web.Request) -> None:
        """Raises: Forbidden, Unauthorized."""
        self._check_host(request.headers.get("Host"))
        if request.method not in _READING or _is_websocket(request):
            self._check_origin(request)
        if self._key is not None and request.path not in OPEN_PATHS:
            self._check_key(request)

    def _check_host(self, header: str | None) -> None:
        if header is None:  # HTTP/1.0; every browser sends one
            return
        name = _bare(header)
        known = is_loopback(name) or name == self._bound or name in self._hosts
        if not known and not (self._bound in _WILDCARDS and _is_address(name)):
            raise Forbidden(
                f"the Host {name!r} is none of ours: add it to allowed_hosts if it should be"
            )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
                raise Forbidden("a request from another site's page")
            return
        ours = urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()
        if not self.allows_origin(origin) and (origin == "null" or not ours):
            raise Forbidden(
                f"the Origin {origin!r} is none of ours: add it to allowed_origins "
                "if that page should be able to use this server"
            )

    def _check_key(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
        given = given or request.headers.get("X-API-Key", "")
        if not given:
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key or b""):
            raise Unauthorized("this API key is not valid")

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of that origin was configured as welcome."""
        return "*" in self._origins or origin.lower() in self._origins

    def cors_headers(self, request: web.BaseRequest) -> dict[str, str]:
        """What lets a welcome page read the answer; nothing for others."""
        origin = request.headers.get("Origin")
        if origin is None or not self.allows_origin(origin):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks beforehand; None when this is no such question."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if not self.allows_origin(request.headers.get("Origin", "")):
            raise Forbidden("this Origin is not among allowed_origins")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
                "Access-Control-Allow-Headers": _CORS_HEADERS,
                "Access-Control-Max-Age": "600",
            },
        )


def _bare(host: str) -> str:
    """A Host header without its port and brackets, lower-case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return (name.rpartition(":")[0] if name.count(":") == 1 else name).rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"
