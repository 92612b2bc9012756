"""The address we listen on, and who has it when it is not free."""

from __future__ import annotations

import errno
import http.client
import json
import socket
from typing import Any, ClassVar

from uml.protocol.errors import UmlError
from uml.supervisor.config import ConfigError

_HELLO_S = 2.0
_BACKLOG = 1024
#: Where a wildcard address is reached from this machine.
_NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class AlreadyRunning(UmlError):
    """Our own supervisor has the port: there is nothing to do. detail: url, pid, version."""

    code: ClassVar[str] = "already_running"
    status: ClassVar[int] = 409


class PortTaken(UmlError):
    """Somebody else has the port."""

    code: ClassVar[str] = "port_taken"
    status: ClassVar[int] = 409


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises: AlreadyRunning, PortTaken naming the process; ConfigError when the address is not one
    of this machine's.
    """
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as e:
        raise ConfigError(f"host = {host!r} is no address: {e.strerror or e}", param="host") from e
    # "localhost" may be both: version 4 is what clients try and print.
    family, kind, protocol, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host.strip("[]") != "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        if e.errno == errno.EADDRINUSE:
            raise _taken(host, port) from e
        raise ConfigError(f"cannot listen on {host}:{port}: {e.strerror}", param="host") from e
    return sock


def url(host: str, sock: socket.socket) -> str:
    """How a client on this machine reaches a listening socket."""
    return _url(host, sock.getsockname()[1])


def _url(host: str, port: int) -> str:
    name = host.strip("[]")
    name = _NEAR.get(name, name)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _taken(host: str, port: int) -> UmlError:
    where, found = _url(host, port), ask(host, port)
    if found is not None:
        pid = found.get("pid")
        detail = {"url": where, "pid": pid, "version": found.get("version")}
        shown = f" (pid {pid})" if pid else ""
        return AlreadyRunning(f"uml is already running at {where}{shown}", detail=detail)
    # Imported here: it looks at the whole machine, which no ordinary start needs.
    from uml.supervisor.doctor import port_holder

    return PortTaken(
        f"port {port} is taken by {port_holder(port)}: end it, or pick another with --port"
    )


def ask(host: str, port: int) -> dict[str, Any] | None:
    """What a supervisor of ours says of its health there; None when none answers."""
    name = host.strip("[]")
    connection = http.client.HTTPConnection(_NEAR.get(name, name), port, timeout=_HELLO_S)
    try:
        connection.request("GET", "/health")
        body = json.loads(connection.getresponse().read(65536))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return body if isinstance(body, dict) and body.get("service") == "uml" else None
