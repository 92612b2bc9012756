"""Files over HTTP: resumable, checksummed, with the disk space checked first."""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from uml.protocol.errors import (
    BadRequest,
    InvalidModel,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from uml.supervisor.pull.pip_settings import pip_setting
from uml.supervisor.pull.place import Place, Report, file_sha256, need_space

_CHUNK = 1 << 18
_TIMEOUT_S = 60
_TRIES = 4
#: A try that got this much further does not count as failed.
_WORTH_BYTES = 1 << 20
#: Answers that may be another one soon.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class _NoSuchRange(Unavailable):
    """The server has nothing from there on."""


def open_url(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Open a URL; `user:password@` in it, pip's certificates and the proxy variables count.

    Raises: NotFound, Unauthorized, Unavailable, BadRequest.
    """
    url, user = split_user(url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadRequest(f"{url} is no http address")
    bundle = pip_setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    context = ssl.create_default_context(cafile=bundle)
    request = urllib.request.Request(url, headers={"User-Agent": "uml"} | (headers or {}))
    if user:  # for this host alone, not for one it may lead to
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context)
    except urllib.error.HTTPError as e:
        e.close()
        kind = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound}.get(e.code)
        kind = _NoSuchRange if e.code == 416 else kind or Unavailable
        raise kind(f"{url} answered {e.code} {e.reason}", detail={"status": e.code}) from None
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unavailable(f"cannot reach {parts.netloc}: {getattr(e, 'reason', e)}") from e
    if not isinstance(response, http.client.HTTPResponse):
        raise Unavailable(f"{url} leads to something that is no http address")
    return response


def split_user(url: str) -> tuple[str, str]:
    """(the address without `user:password@`, that)."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return (urllib.parse.urlunsplit(parts._replace(netloc=host)), user) if at else (url, "")


def fetch(url: str, place: Place) -> list[Path]:
    """A model by its address; `#sha256=<hex>` at the end is checked. Raises: UmlError."""
    plain, fragment = urllib.parse.urldefrag(url)
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(plain).path))
    if not name or name.startswith("."):
        raise BadRequest(f"{split_user(url)[0]} names no file")
    wanted = urllib.parse.parse_qs(fragment).get("sha256", [""])[0].lower()
    there = place.already([name], lambda _, target: bool(wanted) and file_sha256(target) == wanted)
    return there or [download(plain, place.work / name, place.report, sha256=wanted or None)]


def download(url: str, target: Path, report: Report, *, sha256: str | None = None) -> Path:
    """Fetch `url` into `target`, going on where an earlier try stopped.

    Raises: Unavailable (try again: what was fetched is kept), NotFound, Unauthorized, InvalidModel
    (wrong checksum), TooLarge (disk).
    """
    part = target.with_name(target.name + ".part")
    failed = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part, report, target.name)
            break
        except (OSError, http.client.HTTPException, Unavailable) as e:
            failed = 1 if _size(part) - before >= _WORTH_BYTES else failed + 1
            _give_up_or_wait(split_user(url)[0], e, failed)
    if sha256:
        report("checking", 0, 0)
        found = file_sha256(part)
        if found != sha256.lower():
            part.unlink()
            _note(part).unlink(missing_ok=True)
            raise InvalidModel(f"{target.name} has the wrong checksum: {found}, wanted {sha256}")
    os.replace(part, target)
    _note(part).unlink(missing_ok=True)
    return target


def _give_up_or_wait(url: str, error: Exception, failed: int) -> None:
    """Raises: what is to be told, unless another try may help."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise TooLarge(f"the disk is full: {error}") from error
    told = error if isinstance(error, Unavailable) else Unavailable(f"{url}: {error}")
    if failed >= _TRIES or told.detail.get("status", 503) not in _PASSING:
        raise told from error
    time.sleep(0.5 * 2 ** (failed - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    """Beside an unfinished file: by what to tell whether the server still has the same one."""
    return part.with_name(part.name + ".json")


def _continue(url: str, part: Path, report: Report, name: str) -> None:
    """Fetch what is missing of `part`."""
    have, note = _size(part), {}
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_note(part).read_text())
    if have and have == note.get("total"):
        return  # killed between the last byte and the name
    headers = {"Accept-Encoding": "identity"}
    if have and note.get("validator"):
        # If-Range: a file that changed meanwhile is sent anew, from its start.
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    try:
        response = open_url(url, headers)
    except _NoSuchRange as e:  # it has become shorter
        part.unlink(missing_ok=True)
        raise Unavailable(f"{name} could not be continued") from e
    with response:
        start = _start(response)
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise Unavailable(f"{name} was continued at {start} instead of {have}")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else 0
        need_space(part.parent, max(0, total - _size(part)))
        _note(part).write_text(json.dumps({"validator": _validator(response), "total": total}))
        with part.open("ab" if start else "wb") as f:
            _copy(response, f, start, total, report, name)
    if total and _size(part) != total:
        raise Unavailable(f"{name} broke off at {_size(part)} of {total} bytes")


def _start(response: http.client.HTTPResponse) -> int:
    """Where in the file the body begins; -1 when the server does not say."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _validator(response: http.client.HTTPResponse) -> str | None:
    """A strong one. Source: RFC 9110, section 13.1.5."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _copy(
    source: http.client.HTTPResponse,
    target: IO[bytes],
    done: int,
    total: int,
    report: Report,
    name: str,
) -> None:
    while data := source.read(_CHUNK):
        target.write(data)
        done += len(data)
        report(name, done, total)
