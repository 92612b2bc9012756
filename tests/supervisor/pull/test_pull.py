"""What is pulled is whole and checked, or is not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import LLAMA, gguf, write
from tests.supervisor.pull.servers import Site, serve
from uml.protocol.errors import (
    BadRequest,
    Conflict,
    InvalidModel,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from uml.supervisor.pull import place, pull, web

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


def test_pull_needs_no_write_outside_its_home(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = big()
    before = set(os.listdir(tmp_path))
    pull(f"{site.url}/m.gguf", tmp_path / "home")
    assert set(os.listdir(tmp_path)) - before == {"home"}


def test_download_that_was_complete_when_killed_is_not_fetched_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/m.gguf"] = data = big()
    source = f"{site.url}/m.gguf#sha256={hashlib.sha256(data).hexdigest()}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(web, "file_sha256", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        pull(source, tmp_path)
    asked = len(site.ranges)
    pull(source, tmp_path)
    assert len(site.ranges) == asked


def test_long_download_may_break_off_often(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = data = big(8_000_000)
    site.break_after = 1_100_000
    (path,) = pull(f"{site.url}/m.gguf", tmp_path)
    assert path.read_bytes() == data and len(site.ranges) == 8


def test_other_model_of_the_same_name_is_not_overwritten(site: Site, tmp_path: Path) -> None:
    mine = write(tmp_path / "models/m.gguf")
    before = mine.read_bytes()
    site.files["/m.gguf"] = big()
    with pytest.raises(Conflict, match="uml rm"):
        pull(f"{site.url}/m.gguf", tmp_path)
    assert mine.read_bytes() == before and not site.ranges, "told before anything is fetched"
    (path,) = pull(f"{site.url}/m.gguf", tmp_path, name="other")
    assert path == tmp_path / "models/other.gguf"


def test_file_that_is_there_already_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["/m.gguf"] = data = big()
    source = f"{site.url}/m.gguf#sha256={hashlib.sha256(data).hexdigest()}"
    assert pull(source, tmp_path) == pull(source, tmp_path)
    assert len(site.ranges) == 1
    one = write(tmp_path / "src/l.gguf")
    assert pull(str(one), tmp_path) == pull(str(one), tmp_path)
    assert pull(str(tmp_path / "models/l.gguf"), tmp_path) == [tmp_path / "models/l.gguf"]


def test_address_without_an_ending_gives_a_file_that_is_found(site: Site, tmp_path: Path) -> None:
    site.files["/download?id=3"] = big()
    assert pull(f"{site.url}/download?id=3", tmp_path) == [tmp_path / "models/download.gguf"]


def test_user_and_password_are_for_their_own_host(site: Site, tmp_path: Path) -> None:
    site.user = "me:se@cret"
    site.files["/m.gguf"] = big()
    with pytest.raises(Unauthorized) as caught:
        pull(f"{site.url}/m.gguf".replace("//", "//me:wrong@"), tmp_path)
    assert "wrong" not in caught.value.message
    with serve() as other:
        other.files["/m.gguf"] = big()
        site.redirects["/moved.gguf"] = f"{other.url}/m.gguf"
        own = site.url.replace("//", "//me:se%40cret@")
        pull(f"{own}/m.gguf", tmp_path)
        pull(f"{own}/moved.gguf", tmp_path)
        assert site.authorized["/m.gguf"] and other.authorized == {"/m.gguf": None}


def test_full_disk_on_the_way_is_told_and_not_tried_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/m.gguf"] = big()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(web, "_copy", full)
    with pytest.raises(TooLarge, match="No space left"):
        pull(f"{site.url}/m.gguf", tmp_path)
    assert len(site.ranges) == 1


def test_lock_is_held_by_one_and_left_by_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with place.locked(path, "busy"):
        with pytest.raises(Conflict, match="busy"), place.locked(path, "busy"):
            pass
        # Somebody who cleans up, and a third who makes it anew: theirs is another lock.
        path.unlink()
        with place.locked(path, "busy"):
            pass
    assert not path.exists()


def test_lock_that_was_deleted_by_its_last_holder_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    entered = []

    def second() -> None:
        with place.locked(path):
            entered.append(path.exists())

    with place.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered
    thread.join(10)
    assert entered == [True] and not path.exists()
