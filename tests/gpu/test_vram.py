"""On a machine with an NVIDIA device: real VRAM comes and goes, and NVML agrees with the receipts.

Skips itself elsewhere. docs/memory.md says where it ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.house import House, Reader, house
from uml.protocol.tasks import Complete
from uml.supervisor.machine import Nvidia

SWAPS = 10
MB = 1 << 20
#: The driver keeps a little for itself once a first process has used it.
DRIVER_BYTES = 64 * MB


@pytest.fixture
def card() -> Iterator[tuple[str, int, Nvidia]]:
    """(name, free bytes, NVML) of the device with most room."""
    nvidia = Nvidia.open()
    found = max(nvidia.memory(), key=lambda d: d.free_bytes, default=None)
    if found is None:
        pytest.skip(f"no NVIDIA device here: {nvidia.error or 'none found'}")
    yield found.name, found.free_bytes, nvidia
    nvidia.close()


def free(nvidia: Nvidia, name: str) -> int:
    return next(d.free_bytes for d in nvidia.memory() if d.name == name)


async def swap_and_check(h: House, models: list[Any], name: str, nvidia: Nvidia, ask: Any) -> None:
    """Each model in turn; every receipt is verified, and afterwards NVML has all bytes again."""
    begin = free(nvidia, name)
    for number in range(SWAPS):
        await ask(models[number % 2])
        assert len(h.pool.status()["workers"]) == 1
    await h.pool.commands.unload(None)
    receipts = h.pool.crew.receipts
    assert len(receipts) == SWAPS
    for receipt in receipts:
        assert receipt.verified == "yes" and receipt.before[name] > 0, receipt
        assert receipt.freed[name] >= receipt.before[name] * 0.98
    assert free(nvidia, name) >= begin - DRIVER_BYTES


async def test_ten_swaps_of_models_that_take_real_vram(
    tmp_path: Path, card: tuple[str, int, Nvidia]
) -> None:
    name, room, nvidia = card
    own = {m: {"backend": "fake_cuda"} for m in ("a", "b")}
    async with house(tmp_path, models=own) as h:
        size = int(room * 0.6)  # no two of them fit
        models = [h.model(m, weights_bytes=size, device=name) for m in ("a", "b")]
        await swap_and_check(h, models, name, nvidia, h.ask)


@pytest.mark.llama
async def test_ten_swaps_of_llama_cpp_on_the_device(
    tmp_path: Path, card: tuple[str, int, Nvidia], llama_python: str, models_dir: Path
) -> None:
    name, _, nvidia = card
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends/llama_cpp").symlink_to(Path(llama_python).parent.parent)
    async with house(tmp_path, model_dirs=[str(models_dir)], max_loaded=1) as h:
        if "cuda" not in h.environments.devices("llama_cpp"):
            pytest.skip("llama.cpp was built here without CUDA")
        models = [h.registry.find(m) for m in ("smollm2-135m-instruct", "gemma-3-270m")]

        async def ask(model: Any) -> None:
            task = Complete(prompt="Once upon a time", max_tokens=8)
            await h.pool.serving.run(model, task, Reader())
            assert h.worker(model.id)["device"] == name

        await swap_and_check(h, models, name, nvidia, ask)
