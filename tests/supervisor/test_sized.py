"""A library that fills the share of a device it is told, whatever the model needs (vLLM's way)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.formats.hf import LLAMA3_8B, llama, write
from tests.supervisor.machine.machines import machine
from tests.supervisor.test_optimize import model, needs
from uml.plugins.builtin import LLAMA_CPP
from uml.protocol.errors import BadRequest, InvalidModel
from uml.protocol.models import BackendSpec
from uml.supervisor.formats import read_facts
from uml.supervisor.needs import Needs
from uml.supervisor.optimize import Rank
from uml.supervisor.registry import Model

SHARE = "gpu_memory_utilization"
PAGED = BackendSpec(
    name="paged",
    worker="uml.workers.backends.fake:Fake",
    formats=("safetensors",),
    tasks=("complete",),
    devices=("cuda",),
    split="tensor",
    share_option=SHARE,
)


def paged(tmp_path: Path, **options: Any) -> Model:
    facts = read_facts(str(write(tmp_path / "llama", LLAMA3_8B, llama(LLAMA3_8B))))
    return dataclasses.replace(model(facts, **options), backend="paged")


def totals(name: str) -> dict[str, int]:
    return {d.name: d.total_bytes for d in machine(name)}


def house(tmp_path: Path, name: str) -> Needs:
    return needs(tmp_path, name, PAGED)


def test_without_a_share_the_library_is_told_the_one_that_the_estimate_comes_to(
    tmp_path: Path,
) -> None:
    here, one = house(tmp_path, "rtx4090"), paged(tmp_path)
    need = here.need(one, None, None)
    told = here.worker_options(one, need)[SHARE]
    assert told == pytest.approx(need.bytes["cuda0"] / totals("rtx4090")["cuda0"], abs=1e-4)
    assert need.bytes["cuda0"] == here.guess(one).model_bytes, "no more than the model takes"


def test_share_that_is_said_is_what_it_takes_and_the_rest_is_for_keys(tmp_path: Path) -> None:
    here, one = house(tmp_path, "8x-h100"), paged(tmp_path, **{SHARE: 0.5})
    found = here.size(one)
    half = totals("8x-h100")["cuda0"] // 2
    assert found.bytes["cuda0"] == half
    assert found.rank is Rank.WHOLE
    assert found.guess.model_bytes == half, "the parts come to the sum"
    assert found.guess.kv_bytes > 10 * here.guess(one).kv_bytes
    assert "to fill 0.5 of cuda0" in found.arithmetic
    assert here.worker_options(one, here.need(one, None, None))[SHARE] == 0.5


def test_share_is_taken_of_every_device_of_a_split_model(tmp_path: Path) -> None:
    one = paged(tmp_path, **{SHARE: 0.6})
    found = house(tmp_path, "4x-a10g").size(one)
    each = totals("4x-a10g")
    assert len(found.placed.devices) == 2
    for name in found.placed.devices:
        assert found.bytes[name] == int(0.6 * each[name])


def test_share_that_is_too_small_names_both_figures(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=rf"{SHARE} 0.1 of cuda0 is .* the model needs .*say more"):
        house(tmp_path, "rtx4090").size(paged(tmp_path, **{SHARE: 0.1}))


@pytest.mark.parametrize("share", [0, 1.5, -1, True, "half"])
def test_share_that_makes_no_sense_is_named(tmp_path: Path, share: Any) -> None:
    with pytest.raises(BadRequest, match=SHARE):
        house(tmp_path, "rtx4090").size(paged(tmp_path, **{SHARE: share}))


def test_estimate_is_there_where_no_backend_runs_the_format(tmp_path: Path) -> None:
    here, one = needs(tmp_path, "rtx4090", LLAMA_CPP), paged(tmp_path)
    one = dataclasses.replace(one, backend=None)
    assert here.guess(one).weights_bytes == 16_060_522_496
    assert here.guess(one).process_bytes == 0
    with pytest.raises(InvalidModel, match="no backend here runs safetensors"):
        here.size(one)
