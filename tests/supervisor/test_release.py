"""Trees that hide, shared memory that stays, bytes that do not come back: the receipt knows."""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.supervisor.house import MB, house, until
from uml.supervisor import machine, segments, tree
from uml.supervisor import release as release_module
from uml.supervisor.crew import Crew
from uml.supervisor.patience import Patience
from uml.supervisor.release import release


@pytest.fixture(params=["namespace", "plain"])
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Workers in PID namespaces, and without."""
    if request.param == "plain":
        monkeypatch.setattr(tree, "namespace_prefix", lambda: ())
    elif not tree.namespace_prefix():
        pytest.skip("this kernel refuses PID namespaces; `uml doctor` says so")
    return str(request.param)


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/psm_uml-{os.getpid()}-{time.monotonic_ns()}")
    path.write_bytes(b"x" * 4096)
    yield path
    path.unlink(missing_ok=True)


def shared() -> set[Path]:
    """Shared memory of engines; of other test runs too."""
    return set(Path("/dev/shm").glob("*uml-*"))


def engines(pid: int) -> list[int]:
    below = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in below if p.name().startswith("VLLM::")]


async def test_tree_in_the_shape_of_vllm_goes_whole_with_its_shared_memory(
    tmp_path: Path, launched: str
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    before = shared()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        a = h.model("a", weights_bytes=70 * MB, device="fake0")
        b = h.model(
            "b", weights_bytes=70 * MB, device="fake0", options={"fake_bytes": 0, "engine": 70 * MB}
        )
        for _ in range(2):
            await h.ask(b)
            hidden = engines(h.pool.crew.workers[h.worker("b")["id"]].launcher)
            assert len(hidden) == 2 and len(shared() - before) >= 4
            assert h.worker("b")["memory_bytes"]["fake0"] == 70 * MB, "its grandchild's"
            await h.ask(a)
            receipt = next(r for r in reversed(h.pool.crew.receipts) if r.model == "b")
            assert receipt.verified == "yes" and receipt.freed["fake0"] == 70 * MB
            assert set(hidden) <= set(receipt.pids) and len(receipt.swept) == 4
            assert not any(machine.alive(pid) for pid in hidden)
            assert not shared() & {Path(path) for path in receipt.swept}
        assert h.pool.status()["released"]["yes"] == 3


async def test_worker_that_dies_by_itself_leaves_no_shared_memory(
    tmp_path: Path, launched: str
) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"engine": 4 * MB})
        await h.ask(a)
        worker = h.pool.crew.workers[h.worker("a")["id"]]
        hidden = engines(worker.launcher)
        mine = segments.held(hidden)
        assert len(mine) == 4
        os.kill(worker.pid, 9)
        await until(lambda: h.pool.crew.receipts)
        assert set(h.pool.crew.receipts[-1].swept) == mine
        assert not any(os.path.exists(path) for path in mine)
        assert not any(machine.alive(pid) for pid in hidden)


def test_segment_that_somebody_living_maps_is_not_swept(segment: Path) -> None:
    with segment.open("r+b") as f:
        mapped = mmap.mmap(f.fileno(), 4096)
    assert str(segment) in segments.held([os.getpid()])
    assert segments.sweep([str(segment)]) == [] and segment.exists()
    mapped.close()
    assert segments.sweep([str(segment)]) == [str(segment)] and not segment.exists()
    assert segments.sweep([str(segment), "/dev/shm/never-there"]) == []


def test_only_shared_memory_counts(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as f:
        assert str(tmp_path / "f") not in segments.held([os.getpid()])
        assert f.name
    assert segments.held([1 << 30]) == set()


async def test_residue_is_remembered_however_many_come_and_go_after_it(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        stays = {"never_release": True}
        a = h.model("a", weights_bytes=30 * MB, device="fake0", options=stays)
        await h.ask(a)
        await h.pool.commands.unload("a")
        (residue,) = h.pool.status()["residue"]
        h.pool.crew.receipts.clear()  # as after hundreds of others
        h.pool.look_at_residue()
        (again,) = h.pool.status()["residue"]
        assert again["bytes"] == 30 * MB and again["pids"] == residue["pids"] != []
        assert h.pool.status()["released"] == {"no": 1}


class _Blind(machine.FakeDevice):
    """A driver that speaks of other pids than ours, as NVML does in a container."""

    def used_by(self, pids: set[int]) -> int:
        return 0


async def test_device_that_does_not_tell_by_pid_is_verified_by_its_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        late = {"late_release": 0.3}
        await h.ask(h.model("a", weights_bytes=70 * MB, device="fake0", options=late))
        (fake,) = h.machine.sources[-1].devices  # type: ignore[attr-defined]
        monkeypatch.setattr(type(fake), "used_by", _Blind.used_by)
        monkeypatch.setattr(Crew, "_reported", lambda *_: {"fake0": 70 * MB, "mapped": 1})
        (receipt,) = await h.pool.commands.unload("a")
        assert receipt["before"]["fake0"] == receipt["freed"]["fake0"] == 70 * MB
        assert receipt["verified"] == "yes" and receipt["ms"] >= 300


async def test_supervisor_that_was_stopped_in_a_release_still_looks_until_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes come back late, and after the first look a minute was missed."""
    device = tmp_path / "device"
    device.mkdir()
    clock = itertools.chain([0.0, 0.0], (60.0 + s for s in itertools.count(0, 0.001)))
    async with house(tmp_path / "home", fake_device=f"fake0:{100 * MB}:{device}") as h:
        late = {"late_release": 0.3}
        await h.ask(h.model("a", weights_bytes=70 * MB, device="fake0", options=late))
        monkeypatch.setattr(
            "uml.supervisor.release.Patience", lambda: Patience(lambda: next(clock))
        )
        (receipt,) = await h.pool.commands.unload("a")
        assert receipt["verified"] == "yes" and receipt["ms"] >= 300


async def test_word_about_a_device_that_is_not_here_does_not_hold_up_a_release(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        await h.ask(h.model("a"))
        worker: Any = h.pool.crew.workers[h.worker("a")["id"]]
        receipt = await release(
            worker, h.machine, model="a", reason="test", reported={"vulkan7": 5 * MB}
        )
        assert receipt.verified == "yes" and "vulkan7" not in receipt.before


def test_what_others_take_while_they_are_looked_at_is_not_held_against_a_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a model does that is loaded meanwhile: it has grown between any two looks."""
    held, others, growth = 40 * MB, 100 * MB, 0

    def passes() -> None:
        nonlocal others
        others += growth

    def anonymous() -> int:
        passes()
        return held + others

    def memory(pids: Iterable[int]) -> machine.ProcessMemory:
        del pids
        passes()
        return machine.ProcessMemory(anon=others)

    monkeypatch.setattr(release_module, "anonymous_bytes", anonymous)
    monkeypatch.setattr(release_module, "process_memory", memory)
    ram = release_module._Ram([])
    held, growth = 0, 10 * MB
    assert ram.freed() == 40 * MB
