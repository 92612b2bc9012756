"""Files over HTTP: resumable, checksummed, with the disk space checked first."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from uml.protocol.errors import BadRequest, InvalidModel, TooLarge, Unavailable

Report = Callable[[str, int, int], None]
_CHUNK = 1 << 18
_TIMEOUT_S = 60
_TRIES = 4
#: Left free on the disk whatever is fetched.
_SPARE_BYTES = 256 << 20


def open_url(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Open a URL, with pip's certificates where they are set. Raises: Unavailable, BadRequest."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise BadRequest(f"{url} is no http address")
    bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    context = ssl.create_default_context(cafile=bundle if bundle else None)
    request = urllib.request.Request(url, headers={"User-Agent": "uml"} | (headers or {}))
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context)
    except urllib.error.HTTPError as e:
        code = e.code
        e.close()
        if code == 416:
            raise
        raise Unavailable(f"{url} answered {code} {e.reason}") from None
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        raise Unavailable(f"cannot reach {urllib.parse.urlsplit(url).netloc}: {reason}") from e
    assert isinstance(response, http.client.HTTPResponse)
    return response


def need_space(folder: Path, count: int) -> None:
    """Raises: TooLarge when `count` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < count + _SPARE_BYTES:
        raise TooLarge(
            f"the disk of {folder} has {free / 1e9:.1f} GB free, {count / 1e9:.1f} GB are needed "
            f"(and {_SPARE_BYTES / 1e9:.1f} GB stay free)"
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch_url(url: str, work: Path, report: Report) -> Path:
    """A model by its address; `#sha256=<hex>` at the end is checked."""
    parts = urllib.parse.urlsplit(url)
    name = os.path.basename(urllib.parse.unquote(parts.path))
    if not name or name.startswith("."):
        raise BadRequest(f"{url} names no file")
    wanted = urllib.parse.parse_qs(parts.fragment).get("sha256", [None])[0]
    return download(urllib.parse.urldefrag(url).url, work / name, report, sha256=wanted)


def download(url: str, target: Path, report: Report, *, sha256: str | None = None) -> Path:
    """Fetch `url` into `target`, going on where an earlier try stopped.

    Raises: Unavailable (try again: what was fetched is kept), InvalidModel (wrong checksum),
    TooLarge (disk).
    """
    if target.exists() and sha256 and file_sha256(target) == sha256:
        return target
    part = target.with_name(target.name + ".part")
    for attempt in range(_TRIES):
        try:
            _continue(url, part, report, target.name)
            break
        except (OSError, http.client.HTTPException, Unavailable) as e:
            lost = isinstance(e, Unavailable) and " answered 4" in e.message
            if attempt == _TRIES - 1 or lost:
                raise e if isinstance(e, Unavailable) else Unavailable(f"{url}: {e}") from e
            time.sleep(0.5 * 2**attempt)
    if sha256:
        report("checking", 0, 0)
        found = file_sha256(part)
        if found != sha256.lower():
            part.unlink()
            raise InvalidModel(f"{url} has the wrong checksum: {found}, wanted {sha256}")
    os.replace(part, target)
    _note(part).unlink(missing_ok=True)
    return target


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _continue(url: str, part: Path, report: Report, name: str) -> None:
    """Fetch what is missing of `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    validator = None
    with contextlib.suppress(OSError, ValueError):
        validator = json.loads(_note(part).read_text()).get("validator")
    if have and validator:
        # If-Range: a file that changed meanwhile is sent anew, from its start.
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    else:
        have = 0
    try:
        response = open_url(url, headers)
    except urllib.error.HTTPError:  # 416: nothing is missing, or the file has become shorter
        part.unlink(missing_ok=True)
        raise Unavailable(f"{url} could not be continued") from None
    with response:
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        need_space(part.parent, max(0, total - have))
        weak = response.headers.get("ETag", "")
        stamp = (
            weak if weak and not weak.startswith("W/") else response.headers.get("Last-Modified")
        )
        _note(part).write_text(json.dumps({"validator": stamp}))
        with part.open("ab" if have else "wb") as f:
            _copy(response, f, have, total, report, name)
    if total and part.stat().st_size != total:
        raise Unavailable(f"{url} broke off at {part.stat().st_size} of {total} bytes")


def _copy(
    source: IO[bytes] | http.client.HTTPResponse,
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
