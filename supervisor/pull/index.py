"""Finding a package's file on the package index.

Source: the simple repository API, PEP 503 (HTML) and PEP 691 (JSON); names, PEP 427 and PEP 625.
"""

from __future__ import annotations

import html.parser
import json
import os
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from uml.protocol.errors import NotFound, Unauthorized, Unavailable
from uml.supervisor.pull.pip_settings import indexes, link_folders
from uml.supervisor.pull.web import open_url, split_user

_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Archive:
    """A file of the index; its url may be a `file:` one."""

    name: str
    url: str
    sha256: str | None


def find(package: str, version: str) -> Archive:
    """The best file of a version: a wheel for any platform, else any wheel, else the source.

    Raises: NotFound, Unavailable.
    """
    troubles = []
    for folder in link_folders():
        files = [Archive(p.name, p.as_uri(), None) for p in sorted(folder.iterdir())]
        if best := _best(files, package, version):
            return best
    for index in indexes():
        try:
            files = _files(f"{index.rstrip('/')}/{normal(package)}/")
        except NotFound:
            continue
        except (Unavailable, Unauthorized) as e:
            troubles.append(e.message)
            continue
        if best := _best(files, package, version):
            return best
    if troubles:
        raise Unavailable(f"{package} cannot be looked up: {'; '.join(troubles)}")
    raise NotFound(f"the package index has no {package}=={version}")


def normal(package: str) -> str:
    """Source: PEP 503, "Normalized Names"."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _best(files: list[Archive], package: str, version: str) -> Archive | None:
    mine = [f for f in files if _is_of(f.name, package, version)]
    rank = {".whl": 1, "-none-any.whl": 0}
    return min(
        mine,
        key=lambda f: min((r for end, r in rank.items() if f.name.endswith(end)), default=2),
        default=None,
    )


def _is_of(file_name: str, package: str, version: str) -> bool:
    """Whether a file, by its name, is of this version of the package."""
    if file_name.endswith(".whl"):
        parts = file_name.split("-")
        return len(parts) > 4 and normal(parts[0]) == normal(package) and parts[1] == version
    for ending in (".tar.gz", ".zip"):
        name, _, found = file_name.removesuffix(ending).rpartition("-")
        if file_name.endswith(ending) and normal(name) == normal(package) and found == version:
            return True
    return False


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if tag == "a" and k == "href" and v]


def _files(page: str) -> list[Archive]:
    """The files a package's page lists. Raises: NotFound, Unauthorized, Unavailable."""
    kind, body, base = _read(page)
    try:
        if kind == _JSON:
            listed = [
                (f["filename"], f["url"], f["hashes"].get("sha256"))
                for f in json.loads(body)["files"]
            ]
        else:
            parser = _Links()
            parser.feed(body.decode("utf-8", "replace"))
            listed = [_link(link) for link in parser.links]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Unavailable(f"{split_user(page)[0]} is no page of a package index") from e
    return [
        Archive(name, _with_user(urllib.parse.urljoin(base, url), page), sha256)
        for name, url, sha256 in listed
    ]


def _link(link: str) -> tuple[str, str, str | None]:
    url, fragment = urllib.parse.urldefrag(link)
    name = urllib.parse.unquote(os.path.basename(urllib.parse.urlsplit(url).path))
    return name, url, urllib.parse.parse_qs(fragment).get("sha256", [None])[0]


def _read(page: str) -> tuple[str, bytes, str]:
    """(content type, body, address it came from)."""
    parts = urllib.parse.urlsplit(page)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path)) / "index.html"
        try:
            return "text/html", path.read_bytes(), page
        except OSError as e:
            raise NotFound(f"{path}: {e.strerror}") from e
    with open_url(page, {"Accept": f"{_JSON}, text/html;q=0.5"}) as response:
        try:
            return response.headers.get_content_type(), response.read(), response.url
        except OSError as e:
            raise Unavailable(f"{parts.hostname} broke off: {e}") from e


def _with_user(url: str, page: str) -> str:
    """The index's user and password are good for files on the same host."""
    user = split_user(page)[1]
    ours, theirs = urllib.parse.urlsplit(url), urllib.parse.urlsplit(split_user(page)[0])
    if not user or (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
        return url
    return urllib.parse.urlunsplit(ours._replace(netloc=f"{user}@{ours.netloc}"))
