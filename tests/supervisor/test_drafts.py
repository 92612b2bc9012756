"""A model that guesses for another: it has to be of the same family, and its memory is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.formats.ggufs import LLAMA, TENSORS, write
from tests.supervisor.machine.machines import Recorded, machine
from uml.plugins.builtin import LLAMA_CPP
from uml.protocol.errors import BadRequest
from uml.supervisor.api.wishes import read_options
from uml.supervisor.checks import doubts
from uml.supervisor.config import load_config
from uml.supervisor.conversations import Conversations
from uml.supervisor.footprints import Footprints
from uml.supervisor.formats.gguf_header import read_header, read_vocabulary
from uml.supervisor.machine import Machine
from uml.supervisor.needs import Needs
from uml.supervisor.registry import Registry

WORDS = [f"word{i}" for i in range(600)]
BIG = LLAMA | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": WORDS}
SMALL = BIG | {"llama.block_count": 1, "general.name": "Small"}
KEY = 'draft_model = "small"'


class Place:
    """A home with models, and what they need on a recorded machine."""

    def __init__(self, home: Path, name: str = "office-16gb", table: str = KEY) -> None:
        text = f'home = "{home}"\nscan_default_stores = false\n[models.big]\n{table}\n'
        self.config = load_config(env={}, text=text)
        specs = {"llama_cpp": LLAMA_CPP}
        self.registry = Registry(Path(":memory:"), self.config, specs, env={})
        recorded, here = machine(name), Machine(sources=[Recorded(name)])
        here.snapshot = lambda: recorded  # type: ignore[method-assign]
        prints = Footprints(self.registry, lambda _: "1")
        kept = Conversations(home, 0)
        self.needs = Needs(self.config, self.registry, specs, here, kept, prints)
        self.prints = prints

    def close(self) -> None:
        self.registry.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write(tmp_path / "models/big.gguf", BIG)
    write(tmp_path / "models/small.gguf", SMALL)
    return tmp_path


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    place = Place(home)
    yield place
    place.close()


def test_a_draft_is_part_of_the_estimate_and_of_what_the_worker_is_told(place: Place) -> None:
    model, draft = place.registry.find("big"), place.registry.find("small")
    need, sized = place.needs.need(model, None, None), place.needs.size(model)
    assert sized.options["draft_model"] == "small"
    assert sized.options["draft_cells"] == 2 * sized.options["n_ctx"]
    alone = place.needs.size(draft, {}).guess
    guess = sized.guess
    assert guess.draft_bytes >= alone.weights_bytes + alone.compute_bytes // 2 > 0
    assert guess.total_bytes == (
        guess.weights_bytes
        + guess.kv_bytes
        + guess.compute_bytes
        + guess.process_bytes
        + guess.draft_bytes
    )
    assert sum(sized.estimate.values()) == guess.total_bytes
    assert "draft small" in need.arithmetic
    assert sized.to_map()["estimate"]["draft_bytes"] == guess.draft_bytes
    told = place.needs.worker_options(model, need)
    assert told["draft_files"] == list(draft.file.paths)


def test_a_larger_context_keeps_the_draft_that_a_load_brought(place: Place) -> None:
    model = place.registry.find("small")
    loaded = place.needs.need(model, None, {"draft_model": "big", "n_ctx": 512})
    larger = place.needs.again(loaded, model, None, {"n_ctx": 1024})
    assert (larger.n_ctx, larger.options["draft_model"]) == (1024, "big")
    same = place.needs.again(loaded, model, None, {"draft_model": "small"})
    assert same.options["draft_model"] == "big", "answers are the same with any"


def test_without_one_nothing_is_told_or_counted(place: Place) -> None:
    sized = place.needs.size(place.registry.find("small"))
    assert sized.guess.draft_bytes == 0
    assert not any(key.startswith("draft") for key in sized.options)


def test_on_an_accelerator_the_draft_is_counted_there(home: Path) -> None:
    place = Place(home, "rtx4090")
    try:
        sized = place.needs.size(place.registry.find("big"))
        without = place.needs.size(place.registry.find("small"))
        more = sized.bytes["cuda0"] - without.bytes["cuda0"]
        assert more >= sized.guess.draft_bytes > 0
        assert sized.options["n_gpu_layers"] == -1
    finally:
        place.close()


def test_what_was_measured_with_one_draft_is_not_known_of_another(home: Path) -> None:
    place = Place(home)
    try:
        model = place.registry.find("big")
        options = place.needs.size(model).options
        place.prints.begin("w1", model.content_hash, "llama_cpp", options, {"ram": 77 << 20})
        assert place.needs.size(model).learned == {"ram": 77 << 20}
        assert place.needs.size(model, {"draft_model": "big"}).learned is None
        write(home / "models/small.gguf", SMALL | {"general.name": "Another"})
        place.registry.rescan()
        assert place.needs.size(place.registry.find("big")).learned is None
    finally:
        place.close()


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"tokenizer.ggml.tokens": WORDS[:300]}, "another vocabulary: 300 tokens, not 600"),
        ({"tokenizer.ggml.tokens": [*WORDS[:599], "other"]}, "another vocabulary"),
        ({"tokenizer.ggml.model": "llama"}, "another vocabulary"),
        ({"llama.pooling_type": 1}, "no GGUF model that writes text"),
    ],
)
def test_who_cannot_guess_for_a_model_is_refused_with_the_reason(
    home: Path, metadata: dict[str, Any], why: str
) -> None:
    write(home / "models/small.gguf", SMALL | metadata)
    place = Place(home)
    try:
        with pytest.raises(BadRequest, match=why) as refused:
            place.needs.need(place.registry.find("big"), None, None)
        assert refused.value.param == "draft_model"
        assert "small" in refused.value.message and "same family" in refused.value.message
    finally:
        place.close()


def test_a_draft_that_is_not_here_is_named(home: Path) -> None:
    place = Place(home, table='draft_model = "smal"')
    try:
        with pytest.raises(BadRequest, match="'smal' is not known"):
            place.needs.need(place.registry.find("big"), None, None)
        assert any("draft_model" in d for d in doubts(place.config, place.registry, ["llama_cpp"]))
    finally:
        place.close()


def test_padding_and_own_marks_make_no_other_vocabulary(home: Path) -> None:
    words = ["<own>", *WORDS[1:], *(f"[PAD{i}]" for i in range(128))]
    write(home / "models/small.gguf", SMALL | {"tokenizer.ggml.tokens": words})
    place = Place(home)
    try:
        assert place.needs.need(place.registry.find("big"), None, None).options["draft_model"]
    finally:
        place.close()


@given(st.lists(st.text(max_size=8), min_size=1, max_size=30), st.integers(0, 40))
def test_tokens_are_read_as_they_stand(words: list[str], skip: int) -> None:
    import tempfile

    metadata = LLAMA | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": words}
    with tempfile.TemporaryDirectory() as folder:
        path = str(write(Path(folder) / "m.gguf", metadata, tensors=TENSORS))
        found = read_vocabulary(path, skip)
        assert read_header(path).metadata["tokenizer.ggml.tokens"] == words
    assert (found.kind, found.size) == ("gpt2", len(words))
    rest = b"".join(
        len(data).to_bytes(8, "little") + data for data in (w.encode() for w in words[skip:])
    )
    assert found.tokens == rest


def test_a_load_may_name_it() -> None:
    assert read_options({"draft_model": "small"}) == {"draft_model": "small"}
    assert read_options({"options": {"draft_model": "a"}, "num_ctx": 9}) == {
        "draft_model": "a",
        "n_ctx": 9,
    }
    assert read_options({"draft_model": "", "options": {"num_ctx": None}}) is None
    with pytest.raises(BadRequest, match="draft_model"):
        read_options({"draft_model": 7})
