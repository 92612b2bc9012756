"""Memory as the kernel says it, cgroup limits included."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.supervisor.machine.machines import Recorded
from uml.supervisor import machine
from uml.supervisor.machine import nvidia


def test_ram_is_what_the_machine_has() -> None:
    ram = machine.Machine().snapshot()[0]
    assert 0 < ram.free_bytes <= ram.total_bytes <= psutil.virtual_memory().total


@pytest.mark.parametrize("version", ["v1", "v2", "v2-hybrid"])
def test_cgroup_limit_is_found_in_every_hierarchy(tmp_path: Path, version: str) -> None:
    root, proc = tmp_path / "cg", tmp_path / "proc"
    if version == "v1":
        folder, line = root / "memory/box/inner", "4:memory:/box/inner"
        files = {"memory.limit_in_bytes": 1000, "memory.usage_in_bytes": 600}
        stat = "cache 5\ntotal_inactive_file 100\n"
    else:
        base = root / "unified" if version.endswith("hybrid") else root
        folder, line = base / "box/inner", "0::/box/inner"
        files = {"memory.max": 1000, "memory.current": 600}
        stat = "anon 1\ninactive_file 100\n"
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(stat)
    proc.write_text(f"9:cpu:/\n{line}\n")
    assert machine.cgroup_memory(machine.memory_cgroups(root, proc)) == (1000, 500)


def test_cgroup_parent_that_is_tighter_counts(tmp_path: Path) -> None:
    inner = tmp_path / "cg/box/inner"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, "2000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("500")
    (tmp_path / "proc").write_text("0::/box/inner\n")
    assert machine.cgroup_memory(machine.memory_cgroups(tmp_path / "cg", tmp_path / "proc")) == (
        2000,
        1500,
    )


def test_cgroup_without_limit_is_none(tmp_path: Path) -> None:
    (tmp_path / "proc").write_text("0::/nowhere\nnonsense\n")
    assert machine.cgroup_memory(machine.memory_cgroups(tmp_path, tmp_path / "proc")) is None


def test_nvidia_without_a_driver_is_an_ordinary_machine() -> None:
    found = machine.Nvidia.open()
    assert found.cards or found.error
    if not found.cards:
        assert found.memory() == [] and found.used_by({1}) == {}
    found.close()


def test_fake_device_counts_by_owner_and_frees_the_dead(tmp_path: Path) -> None:
    import os

    device = machine.FakeDevice("fake0", 1000, tmp_path)
    (tmp_path / f"seg.{os.getpid()}.t.now").write_bytes(b"x" * 300)
    (tmp_path / "seg.4194999.t.now").write_bytes(b"x" * 200)
    (tmp_path / "seg.4194999.t.never").write_bytes(b"x" * 100)
    (tmp_path / "something else").write_bytes(b"x")
    assert device.memory().free_bytes == 600
    assert device.used_by({os.getpid()}) == 300 and device.used_by({4194999}) == 100


def test_alive_knows_the_dead() -> None:
    import os

    assert machine.alive(os.getpid()) and not machine.alive(4194999)


CARDS = [nvidia.Card(f"cuda{i}", "X", f"GPU-{i}abc-{i}", None) for i in range(3)]


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (None, "012"),
        ("", ""),
        ("-1", ""),
        ("2,0", "20"),
        ("GPU-1abc", "1"),
        ("0,7,1", "0"),
        ("GPU-", ""),
        ("1,1", "1"),
    ],
)
def test_cards_that_the_user_hid_from_cuda_are_hidden_from_us(
    wanted: str | None, left: str
) -> None:
    assert "".join(c.name[-1] for c in nvidia.allowed(CARDS, wanted)) == left


def test_process_is_told_its_cards_by_uuid() -> None:
    told = nvidia.Nvidia(CARDS).visible(["cuda2", "ram", "cuda0"])
    assert told == {"CUDA_VISIBLE_DEVICES": "GPU-2abc-2,GPU-0abc-0"}


def test_snapshot_holds_ram_and_every_source() -> None:
    found = machine.Machine(sources=[Recorded("4x-l4")])
    assert [d.name for d in found.snapshot()] == ["ram", "cuda0", "cuda1", "cuda2", "cuda3"]
    assert found.visible(["cuda3"]) == {"SEEN": "cuda3"}


def test_several_fake_devices(tmp_path: Path) -> None:
    text = f"fake0:100:{tmp_path / 'a'},fake1:200:{tmp_path / 'b'}"
    found = machine.Machine(text, sources=[])
    assert [(d.name, d.total_bytes) for d in found.snapshot()[1:]] == [
        ("fake0", 100),
        ("fake1", 200),
    ]
