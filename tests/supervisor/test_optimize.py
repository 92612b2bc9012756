"""Sizes are chosen for the memory at hand: on recorded machines, and after memory ran out."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supervisor.estimates.test_gguf import MINILM, SMOLLM2
from tests.supervisor.house import MB, house
from tests.supervisor.machine.machines import NAMES, Recorded, machine
from uml.plugins.builtin import LLAMA_CPP
from uml.protocol.errors import LoadFailed
from uml.protocol.models import BackendSpec, ModelFacts, ModelFile
from uml.supervisor.config import load_config
from uml.supervisor.conversations import Conversations
from uml.supervisor.estimates import resolve_options
from uml.supervisor.footprints import Footprints
from uml.supervisor.machine import Machine
from uml.supervisor.needs import Needs
from uml.supervisor.optimize import PROFILES, Rank, choose, degraded, profile, variants
from uml.supervisor.registry import Model
from uml.supervisor.relief import OUT_OF_MEMORY
from uml.supervisor.sized import Sized

GB = 1 << 30
#: Shaped like an 8B model in 4 bits, and one of 32B.
EIGHT = dataclasses.replace(
    SMOLLM2,
    context_length=131072,
    embedding_length=4096,
    feed_forward_length=14336,
    vocab_size=128256,
    block_count=32,
    head_count=32,
    head_count_kv=(8,) * 32,
    key_length=128,
    value_length=128,
    swa_layers=(False,) * 32,
    weights_bytes=4_920_000_000,
    embedding_bytes=700_000_000,
)
SIX = dataclasses.replace(EIGHT, weights_bytes=5_900_000_000)
SIXTY = dataclasses.replace(
    EIGHT, block_count=80, head_count_kv=(8,) * 80, weights_bytes=23_900_000_000
)
THIRTY = dataclasses.replace(
    EIGHT, block_count=64, head_count_kv=(8,) * 64, weights_bytes=19_800_000_000
)


class _Nothing:
    """A registry without memories."""

    def footprint(self, *_: str) -> None:
        return None

    def load_seconds(self, _: str) -> None:
        return None


def needs(tmp_path: Path, name: str, spec: BackendSpec = LLAMA_CPP) -> Needs:
    recorded = machine(name)
    here = Machine(sources=[Recorded(name)])
    here.snapshot = lambda: recorded  # type: ignore[method-assign]
    config = load_config(env={}, overrides={"home": str(tmp_path)})
    registry: Any = _Nothing()
    kept = Conversations(tmp_path, 0)
    footprints = Footprints(registry, lambda _: "1")
    return Needs(config, registry, {spec.name: spec}, here, kept, footprints)


def model(facts: ModelFacts, **options: Any) -> Model:
    file = ModelFile(("/m.gguf",), "gguf", facts.weights_bytes, 0)
    return Model("m", (), file, facts, "uml", None, "llama_cpp", options, "hash", 0)


_NEEDS = {name: needs(Path("/nowhere"), name) for name in NAMES}


def sized(tmp_path: Path, name: str, facts: ModelFacts, **options: Any) -> Sized:
    return needs(tmp_path, name).size(model(facts, **options))


@pytest.mark.parametrize(
    ("name", "facts", "context", "rank", "why"),
    [
        ("office-16gb", EIGHT, 4096, Rank.WHOLE, ""),
        ("rtx4090", EIGHT, 16384, Rank.WHOLE, ""),
        ("8x-h100", THIRTY, 32768, Rank.WHOLE, ""),
        ("rtx3060", EIGHT, 4096, Rank.WHOLE, ""),
        ("laptop-8gb", SIX, 4096, Rank.WHOLE, "cells for one full context"),
        ("rtx4090", THIRTY, 16384, Rank.WHOLE, "cells for one full context"),
        ("rtx4090", SIXTY, 4096, Rank.WHOLE, "context 4096 instead of 16384"),
        ("rtx3060", THIRTY, 4096, Rank.PARTLY, ""),
    ],
)
def test_context_cells_and_cache_follow_the_machine(
    tmp_path: Path, name: str, facts: ModelFacts, context: int, rank: Rank, why: str
) -> None:
    found = sized(tmp_path, name, facts)
    assert (found.options["n_ctx"], found.rank) == (context, rank), found.why
    assert why in found.why and bool(why) == bool(found.why)


def test_what_somebody_said_is_not_changed(tmp_path: Path) -> None:
    found = sized(tmp_path, "rtx3060", EIGHT, n_ctx=65536, cache_type_k="f16", slots=2)
    said = {k: found.options[k] for k in ("n_ctx", "cache_type_k", "slots")}
    assert said == {"n_ctx": 65536, "cache_type_k": "f16", "slots": 2}


@given(
    name=st.sampled_from(NAMES),
    weights=st.integers(100 * MB, 400 * GB),
    layers=st.integers(1, 120),
)
@settings(deadline=None, max_examples=60)
def test_what_fits_is_leased_within_what_there_is(name: str, weights: int, layers: int) -> None:
    facts = dataclasses.replace(
        EIGHT, weights_bytes=weights, block_count=layers, head_count_kv=(8,) * layers
    )
    found = _NEEDS[name].size(model(facts))
    totals = {d.name: d.total_bytes for d in machine(name)}
    fits = all(n <= totals[d] for d, n in found.bytes.items())
    assert fits == (found.rank is not Rank.NOWHERE)
    least = min(512, facts.context_length)
    assert found.options["n_ctx"] >= least and found.options["kv_cells"] >= found.options["n_ctx"]
    if found.rank is Rank.NOWHERE:
        assert found.options["n_ctx"] == least, "the refusal tells of the smallest there is"


def test_partly_on_the_card_rather_than_with_a_useless_context() -> None:
    ways = list(variants(EIGHT, {}, resolve_options(EIGHT, {})))
    # Fits whole only below 2048 tokens.
    ranks = {way.why: Rank.PARTLY if way.comfortable else Rank.WHOLE for way in ways}
    rank, way = choose(iter(ways), lambda w: (ranks[w.why], w))
    assert rank is Rank.PARTLY and way.changes == {}


def test_any_context_rather_than_nothing() -> None:
    ways = list(variants(EIGHT, {}, resolve_options(EIGHT, {})))
    _, way = choose(iter(ways), lambda w: (Rank.NOWHERE if w.comfortable else Rank.RAM, w))
    assert way.changes["n_ctx"] == 1024


def test_models_that_make_vectors_keep_their_sizes() -> None:
    assert [w.changes for w in variants(MINILM, {}, resolve_options(MINILM, {}))] == [{}]


@pytest.mark.parametrize(
    ("name", "expected", "kind"),
    [
        ("laptop-8gb", "8 GB", "ram"),
        ("office-16gb", "16 GB", "ram"),
        ("rtx4090", "24 GB", "cuda"),
        ("2x-rtx3090", "48 GB", "cuda"),
        ("m1-16gb", "8 GB", "metal"),
        ("8x-h100", "48 GB", "cuda"),
    ],
)
def test_profile_of_a_machine(name: str, expected: str, kind: str) -> None:
    found, by = profile(machine(name))
    assert (found.name, by) == (expected, kind)


def test_profiles_grow() -> None:
    pairs = list(itertools.pairwise(PROFILES))
    assert all(a.least_bytes < b.least_bytes and a.n_ctx < b.n_ctx for a, b in pairs)


def test_degraded_is_half_the_context_and_fewer_layers() -> None:
    on_card = {"n_ctx": 8192, "devices": ["cuda0"], "n_gpu_layers": -1}
    assert degraded(on_card, 33) == {"n_ctx": 4096, "n_gpu_layers": 24}
    assert degraded({"n_ctx": 600}, 33) == {"n_ctx": 512}
    assert degraded({"n_ctx": 512}, 33) is None


@pytest.mark.parametrize(
    "text",
    [
        "llama.cpp makes no context: failed to allocate buffer for kv cache",
        "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "std::bad_alloc",
        "MemoryError",
        "cannot allocate memory",
    ],
)
def test_libraries_say_out_of_memory_in_many_ways(text: str) -> None:
    assert OUT_OF_MEMORY.search(text)
    assert not OUT_OF_MEMORY.search("unknown model architecture: 'memoryless'")


async def test_load_that_runs_out_of_memory_is_tried_once_with_less(tmp_path: Path) -> None:
    """The fake model cannot hold more than 2048 tokens; whoever waits gets the answer."""
    async with house(tmp_path) as h:
        a = h.model("a", n_ctx=4096, options={"most_context": 2048})
        with h.events.subscribe() as queue:
            assert (await h.ask(a)).text.startswith("a")
            events = [queue.get_nowait() for _ in range(queue.qsize())]
        (warning,) = [e for e in events if e["event"] == "load.degraded"]
        assert warning["n_ctx"] == 2048 and "out of memory" in warning["reason"]
        assert h.worker("a")["context"] == 2048 and not h.pool.failing()
        await h.pool.commands.unload("a")
        plan = h.pool.commands.plan(a)
        assert "memory ran out in a load" in plan["chosen"]
        await h.ask(a)
        assert h.worker("a")["context"] == 2048, "it is known from now on"


async def test_load_that_runs_out_of_memory_again_fails_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", n_ctx=4096, options={"most_context": 100})
        with h.events.subscribe() as queue:
            with pytest.raises(LoadFailed, match="out of memory"):
                await h.ask(a)
            names = [queue.get_nowait()["event"] for _ in range(queue.qsize())]
        assert names.count("worker.spawned") == 2 and names.count("load.degraded") == 1


def test_best_quantisation_is_the_most_exact_that_fits_whole_and_with_the_defaults(
    tmp_path: Path,
) -> None:
    chooser = needs(tmp_path, "rtx3060")
    sizes = {"q8-0": 11.5e9, "q6-k": 8.6e9, "q4-k-m": 4.9e9, "q2-k": 3.2e9}
    found = [
        dataclasses.replace(model(dataclasses.replace(EIGHT, weights_bytes=int(size))), id=name)
        for name, size in sizes.items()
    ]
    assert chooser.best(found).id == "q6-k"
    assert needs(tmp_path, "rtx4090").best(found).id == "q8-0"
    broken = dataclasses.replace(found[1], error="cut short")
    assert chooser.best([broken, found[2]]).id == "q4-k-m"
