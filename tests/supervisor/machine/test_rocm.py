"""AMD devices from a sysfs as a machine with two of them has it."""

from __future__ import annotations

from pathlib import Path

from uml.supervisor.machine import Rocm, Vitals
from uml.supervisor.machine.metal import working_set

GiB = 1 << 30


def put(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def card(root: Path, index: int, bus: int, total: int, used: int, **more: object) -> Path:
    address = f"0000:{bus:02x}:00.0"
    real = put(
        root / f"devices/pci/{address}",
        vendor="0x1002",
        device="0x744c",
        uevent=f"DRIVER=amdgpu\nPCI_SLOT_NAME={address}",
        mem_info_vram_total=total,
        mem_info_vram_used=used,
        **more,
    )
    drawn = root / f"class/drm/card{index}"
    drawn.mkdir(parents=True)
    (drawn / "device").symlink_to(real)
    return real


def node(root: Path, index: int, gpu_id: int, bus: int = 0) -> None:
    properties = f"cpu_cores_count 0\nlocation_id {bus << 8}\ndomain 0" if gpu_id else ""
    put(root / f"class/kfd/kfd/topology/nodes/{index}", gpu_id=gpu_id, properties=properties)


def two_cards(root: Path) -> Rocm:
    # The kernel draws them in another order than the KFD counts them.
    card(root, 1, 0x43, 24 * GiB, 2 * GiB, gpu_busy_percent=37, product_name="Big")
    real = card(root, 2, 0x03, 16 * GiB, GiB)
    put(real / "hwmon/hwmon5", temp1_input=54000)
    put(root / "class/drm/card0/device", vendor="0x10de")  # somebody else's
    node(root, 0, 0)
    node(root, 1, 4711, bus=0x03)
    node(root, 2, 4712, bus=0x43)
    return Rocm(root)


def test_rocm_devices_are_numbered_as_their_runtime_numbers_them(tmp_path: Path) -> None:
    first, second = two_cards(tmp_path).memory()
    assert (first.name, first.total_bytes, first.free_bytes) == ("rocm0", 16 * GiB, 15 * GiB)
    assert (second.name, second.free_bytes, second.detail) == ("rocm1", 22 * GiB, "Big")
    assert first.kind == "rocm" and first.detail == "AMD 1002:744c"


def test_rocm_tells_bytes_by_pid_and_how_a_card_is(tmp_path: Path) -> None:
    rocm = two_cards(tmp_path)
    put(tmp_path / "class/kfd/kfd/proc/70", vram_4711=500, vram_4712=0)
    put(tmp_path / "class/kfd/kfd/proc/71", vram_4711=20)
    put(tmp_path / "class/kfd/kfd/proc/99", vram_4711=9)
    assert rocm.used_by({70, 71}) == {"rocm0": 520}
    assert rocm.vitals() == {"rocm0": Vitals(None, 54.0), "rocm1": Vitals(0.37, None)}


def test_rocm_process_is_shown_the_devices_it_was_given(tmp_path: Path) -> None:
    rocm = two_cards(tmp_path)
    assert rocm.visible(["rocm1", "rocm0"]) == {"ROCR_VISIBLE_DEVICES": "1,0"}
    assert rocm.visible(["cuda0"]) == {}


def test_rocm_card_that_fell_off_the_bus_is_left_out(tmp_path: Path) -> None:
    rocm = two_cards(tmp_path)
    (tmp_path / "devices/pci/0000:03:00.0/mem_info_vram_used").unlink()
    assert [d.name for d in rocm.memory()] == ["rocm1"]


def test_machine_without_amd_devices_has_none(tmp_path: Path) -> None:
    rocm = Rocm(tmp_path)
    assert rocm.memory() == [] and rocm.used_by({1}) == {} and rocm.vitals() == {}


def test_metal_may_use_a_part_of_ram_unless_its_owner_says_more() -> None:
    assert working_set(24 * GiB) == 16 * GiB
    assert working_set(64 * GiB) == 48 * GiB
    assert working_set(64 * GiB, 60 * 1024) == 60 * GiB
    assert working_set(8 * GiB, 1 << 30) == 8 * GiB
