"""What both clients share: records, server-sent events, and errors made from answers. No I/O."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from uml.protocol.errors import UmlError, from_wire

DEFAULT_URL = "http://127.0.0.1:8484"
#: HTTP status -> code of the error it means, for bodies whose own code is not one of ours.
_BY_STATUS = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "rate_limited",
    501: "backend_not_installed",
    502: "worker_died",
    503: "unavailable",
    504: "stalled",
}


class Unreachable(UmlError):
    """Nobody answers at the address, or the connection broke in the middle of an answer."""

    code: ClassVar[str] = "unreachable"
    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


class Record(dict[str, Any]):
    """A JSON object whose fields are attributes too: `r.choices[0].message.content`.

    A field that the server did not send reads as None, as in OpenAI's client.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for their hooks this way
            raise AttributeError(name)
        return self.get(name)


def parse(text: str | bytes) -> Any:
    """JSON with every object as a `Record`. Raises: ValueError."""
    return json.loads(text, object_hook=Record)


def base_url(url: str | None) -> str:
    """The address to talk to: given, or `UML_URL`, or the default; without a slash at the end."""
    url = (url or os.environ.get("UML_URL") or DEFAULT_URL).rstrip("/")
    return url if "://" in url else f"http://{url}"


def headers(
    api_key: str | None, body: bytes | None, media_type: str = "application/json"
) -> dict[str, str]:
    found = {"Accept": "*/*"}
    key = api_key or os.environ.get("UML_API_KEY")
    if key:
        found["Authorization"] = f"Bearer {key}"
    if body is not None:
        found["Content-Type"] = media_type
    return found


def nobody(url: str, why: object) -> Unreachable:
    return Unreachable(f"no supervisor answers at {url} ({why})")


def broken(url: str, why: object) -> Unreachable:
    return Unreachable(f"the connection to {url} was lost ({why or 'closed'})")


def error_of(status: int, body: bytes, retry_after: str | None = None) -> UmlError:
    """The error an answer of `status` stands for, whoever sent it; never raises."""
    found: Any = None
    try:
        found = parse(body)
    except ValueError:
        pass
    inner = found.get("error") if isinstance(found, dict) else None
    if isinstance(inner, str):
        inner = {"message": inner}
    if not isinstance(inner, dict):
        text = body[:200].decode(errors="replace").strip()
        inner = {"message": text or f"the server answered HTTP {status}"}
    return error_from(inner, status, retry_after)


def error_from(
    inner: dict[str, Any], status: int = 500, retry_after: str | None = None
) -> UmlError:
    """The inner map of `{"error": {...}}` as an error; `status` decides for unknown codes."""
    code = inner.get("code")
    if from_wire({"code": code}).code != code:
        code = _BY_STATUS.get(status, "internal_error")
    after = inner.get("retry_after_s")
    try:
        after = float(retry_after) if after is None and retry_after else after
    except ValueError:  # an HTTP date
        pass
    return from_wire({**inner, "code": code, "retry_after_s": after})


@dataclass
class Event:
    """One server-sent event. Source: WHATWG HTML, 9.2 Server-sent events."""

    name: str = ""
    data: list[str] = field(default_factory=list)

    def read(self) -> Any:
        """Its data as JSON; None for `[DONE]`. Raises: UmlError that it carries; ValueError."""
        text = "\n".join(self.data)
        if text.strip() == "[DONE]":
            return None
        value = parse(text)
        inner = value.get("error") if isinstance(value, dict) else None
        if self.name == "error" or isinstance(inner, dict):
            raise error_from(inner if isinstance(inner, dict) else {"message": text})
        return value


class EventParser:
    """Bytes in, whole events out; comments are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = Event()

    def feed(self, data: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for raw in lines:
            line = raw.rstrip(b"\r").decode(errors="replace")
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._event.data:
                    found.append(self._event)
                self._event = Event()
            elif name == "event":
                self._event.name = value
            elif name == "data":
                self._event.data.append(value)
        return found
