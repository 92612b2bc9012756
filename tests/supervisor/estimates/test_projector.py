"""What encodes images, beside the compute buffers that llama.cpp itself reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.estimates.test_gguf import SMOLLM2
from tests.supervisor.formats.ggufs import TENSORS, write
from uml.plugins.builtin import LLAMA_CPP
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.estimates.projector import encoding_bytes, positions
from uml.supervisor.formats import read_facts
from uml.supervisor.projectors import Part, attach
from uml.supervisor.sized import demand_of

MIB = 1 << 20


def encoder(kind: str, width: int, forward: int, heads: int, image: int, **more: Any) -> Any:
    shape = {"width": width, "forward": forward, "heads": heads, "image_size": image}
    rest = {"kind": kind, "patch_size": 14, "merge": 0, "windows": False}
    return rest | shape | more


GEMMA3 = encoder("gemma3", 1152, 4304, 16, 896)
QWEN2 = encoder("qwen2vl_merger", 1280, 5120, 16, 560, merge=2)
QWEN25 = encoder("qwen2.5vl_merger", 1280, 3420, 16, 560, merge=2, windows=True)
WARM = {"image_max_tokens": 46 * 46}  # the image that it reserves for


# llama.cpp 0c1e57098: "CPU compute buffer size", MiB.
@pytest.mark.parametrize(
    ("shape", "options", "reported", "off"),
    [
        (GEMMA3, {}, 121.25, 0.001),
        (GEMMA3, {"flash_attention": "off"}, 1132.0, 0.001),
        (GEMMA3 | {"image_size": 448}, {}, 30.31, 0.001),
        (GEMMA3 | {"image_size": 448}, {"flash_attention": "off"}, 91.0, 0.001),
        (encoder("idefics3", 768, 3072, 12, 512, patch_size=16), {}, 21.0, 0.001),
        (encoder("idefics3", 1152, 4304, 16, 384, patch_size=16), {}, 17.05, 0.001),
        (encoder("mlp", 1024, 4096, 16, 336), {}, 19.32, 0.2),
        (QWEN2, WARM, 267.08, 0.1),
        (QWEN2, WARM | {"flash_attention": "off"}, 4598.27, 0.1),
        (QWEN25, WARM, 594.37, 0.1),
        (QWEN25, WARM | {"flash_attention": "off"}, 4871.57, 0.1),
    ],
)
def test_scratch_of_an_image_is_what_llama_cpp_reserves(
    shape: Any, options: dict[str, Any], reported: float, off: float
) -> None:
    facts = dataclasses.replace(SMOLLM2, extra={"encoders": {"vision": shape}})
    assert encoding_bytes(facts, options) / MIB == pytest.approx(reported, rel=off)


def test_image_of_any_size_counts_as_the_largest() -> None:
    assert positions(QWEN2, {}) == 3_211_264 // 14**2, "the library's image_max_pixels"
    assert positions(QWEN2, WARM) == (1288 // 14) ** 2
    assert positions(GEMMA3, WARM) == 64**2, "these are all made one size"


def test_projector_is_counted_by_tensor_and_leased_where_a_backend_loads_it(
    tmp_path: Path,
) -> None:
    said = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.vision.projection_dim": 64,
        "clip.vision.embedding_length": 1152,
        "clip.vision.feed_forward_length": 4304,
        "clip.vision.attention.head_count": 16,
        "clip.vision.image_size": 896,
        "clip.vision.patch_size": 14,
    }
    tensors = {"v.patch_embd.weight": ((14, 14, 3, 8), 0, 14 * 14 * 3 * 8 * 4)}
    eye = write(tmp_path / "mmproj-m.gguf", said, tensors=tensors)
    model = write(tmp_path / "m.gguf", tensors=TENSORS)
    parts = [Part(str(p), p.name, read_facts(str(p))) for p in (eye, model)]
    facts = attach(parts)[str(model)]
    options = resolve_options(facts, {})
    guess = estimate(facts, options, 0)
    assert (guess.projector_bytes, guess.encoding_bytes / MIB) == (18816, 121.25)
    alone = estimate(parts[1].facts or facts, options, 0)
    assert guess.total_bytes == alone.total_bytes, "on top, where it is loaded at all"
    seeing = dataclasses.replace(LLAMA_CPP, tasks=(*LLAMA_CPP.tasks, "describe"))
    blind = demand_of(facts, guess, LLAMA_CPP)
    assert demand_of(facts, guess, seeing).ram_bytes - blind.ram_bytes == 18816 + 121.25 * MIB


def test_model_without_a_projector_has_nothing_to_encode() -> None:
    assert encoding_bytes(SMOLLM2, {}) == 0
