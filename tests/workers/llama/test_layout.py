"""How cells are divided, and that answers do not notice."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import WorkerProcess
from uml.protocol.tasks import Chat, Complete, Sampling
from uml.workers.backends.llama_cpp.cells import Columns
from uml.workers.backends.llama_cpp.layout import PAD, Layout, Layouts, Need
from uml.workers.backends.llama_cpp.states import read

needs = st.builds(
    lambda now, more: Need(now, now + more), st.integers(1, 5000), st.integers(0, 5000)
)


@given(st.integers(1, 80), st.integers(1, 64), st.lists(needs, max_size=64), st.booleans())
def test_everybody_fits_into_the_chosen_layout(
    blocks: int, slots: int, wanted: list[Need], settled: bool
) -> None:
    cells = blocks * PAD
    layouts = Layouts(cells, slots, elastic=True)
    wanted = [Need(min(n.now, cells), min(n.most, cells)) for n in wanted][:slots]
    for now in (layouts.first(), layouts.pool, *layouts.columns):
        chosen = layouts.choose(now, wanted, settled=settled)
        assert chosen.sequences >= len(wanted)
        assert chosen.cells <= cells
        assert chosen.sequences * chosen.column <= cells
        assert chosen.column % PAD == 0
        assert all(need.now <= chosen.most for need in wanted)
        # Nothing changes again before anybody does.
        assert layouts.choose(chosen, wanted, settled=False) == chosen


def test_columns_become_more_with_the_requests_and_longer_with_the_longest() -> None:
    layouts = Layouts(16384, 32, elastic=True)
    first = layouts.first()
    assert first == Layout(4096, 8, 512)
    short, long = Need(100, 164), Need(1900, 4096)
    assert layouts.choose(first, [short] * 8) == first
    many = layouts.choose(first, [short] * 20)
    assert many == Layout(16384, 32, 512)
    assert layouts.choose(many, [short]) == many
    assert layouts.choose(many, [short, long]) == Layout(16384, 4, 4096)
    assert layouts.choose(many, [*[short] * 20, long]) == Layout(16384, 32)


def test_from_the_pool_back_to_columns_only_when_it_settled() -> None:
    layouts = Layouts(16384, 32, elastic=True)
    short = [Need(100, 164)] * 9
    assert layouts.choose(layouts.pool, short, settled=False) == layouts.pool
    assert layouts.choose(layouts.pool, short, settled=True) == Layout(16384, 32, 512)


@pytest.mark.parametrize(("cells", "elastic"), [(1024, True), (16384, False)])
def test_a_small_pool_or_one_that_cannot_is_not_divided(cells: int, elastic: bool) -> None:
    layouts = Layouts(cells, 8, elastic=elastic)
    assert layouts.first() == layouts.pool == Layout(cells, 8)
    assert layouts.choose(layouts.pool, [Need(900, 1000)]) == layouts.pool


def test_columns_are_counted_apart() -> None:
    columns = Columns(512, 3)
    columns.append(0, 10)
    columns.append(2, 7)
    columns.truncate(0, 4)
    columns.truncate(2, 9)
    assert (columns.length(0), columns.length(1), columns.length(2)) == (4, 0, 7)
    assert (columns.used, columns.free, columns.total) == (11, 1525, 1536)
    columns.clear()
    assert (columns.used, columns.length(2)) == (0, 0)


# --- states ----------------------------------------------------------------------------------


def block(cells: int, layers: int, transposed: bool, first: int = 0) -> bytes:
    """Cells of one stream as llama.cpp writes them, with rows of two lengths, from a position on.
    What a cell holds says whose it is."""
    if not cells:
        return struct.pack("<I", 0)
    positions = range(first, first + cells)
    data = struct.pack("<I", cells)
    data += b"".join(struct.pack("<iII", i, 1, 5) for i in positions)
    data += struct.pack("<II", transposed, layers)
    for layer in range(layers):
        row = 6 + 2 * layer
        data += struct.pack("<iQ", 1, row) + b"".join(bytes([i]) * row for i in positions)
    for layer in range(layers):
        if transposed:
            data += struct.pack("<iII", 1, 2, 3 + layer) + b"ab" * (3 + layer) * cells
        else:
            data += struct.pack("<iQ", 1, 4) + b"".join(bytes([i]) * 4 for i in positions)
    return data


def state(blocks: list[bytes], streams: int, stream: int) -> Any:
    empty = struct.pack("<I", 0)
    parts = [
        struct.pack("<I", streams) + empty * stream + b + empty * (streams - 1 - stream)
        for b in blocks
    ]
    return np.frombuffer(b"".join([b"magicseq", *parts]), np.uint8)


@given(st.data())
def test_a_packed_state_fits_into_any_column(data: st.DataObject) -> None:
    shape = st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans())
    blocks = [block(*s) for s in data.draw(st.lists(shape, min_size=1, max_size=2))]
    streams, target_streams = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    stream = data.draw(st.integers(0, streams - 1))
    target = data.draw(st.integers(0, target_streams - 1))
    found = read(state(blocks, streams, stream), streams, stream)
    packed = np.empty(found.size(), np.uint8)
    found.write(packed)
    assert bytes(packed) == bytes(state(blocks, 1, 0))
    moved = np.empty(read(packed).size(target_streams), np.uint8)
    read(packed).write(moved, target_streams, target)
    assert bytes(moved) == bytes(state(blocks, target_streams, target))


@given(st.data())
def test_a_state_without_its_beginning_has_all_the_rest(data: st.DataObject) -> None:
    """Also where one of two caches had forgotten the beginning before."""
    shape = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 9))
    shapes = data.draw(st.lists(shape, min_size=1, max_size=2))
    position = data.draw(st.integers(0, 16))
    whole = state([block(cells, layers, False, first) for cells, layers, first in shapes], 1, 0)
    found = read(whole).after(position)
    rest = np.empty(found.size(), np.uint8)
    found.write(rest)
    expected = []
    for cells, layers, first in shapes:
        gone = min(cells, max(0, position - first))
        expected.append(block(cells - gone, layers, False, first + gone))
    assert bytes(rest) == bytes(state(expected, 1, 0))


def test_what_cannot_be_cut_says_so() -> None:
    with pytest.raises(ValueError, match="transposed"):
        read(state([block(3, 1, True)], 1, 0)).after(1)
    mixed = bytearray(block(3, 1, False))
    mixed[4:8], mixed[16:20] = mixed[16:20], mixed[4:8]
    with pytest.raises(ValueError, match="order"):
        read(state([bytes(mixed)], 1, 0)).after(1)


@given(st.integers(8, 400))
def test_a_state_that_is_cut_is_refused(length: int) -> None:
    whole = state([block(3, 2, False), block(2, 1, True)], 3, 1)
    if length < len(whole):
        try:
            found = read(whole[:length], 3, 1)
        except ValueError:
            return
        # What is there is the head alone, or one whole part.
        assert [bytes(b) for b in found.blocks] in ([], [block(3, 2, False)])


def test_a_state_of_another_layout_is_refused() -> None:
    whole = state([block(3, 2, False)], 3, 1)
    for streams, stream in ((2, 1), (3, 0), (4, 1)):
        with pytest.raises(ValueError, match="stream"):
            read(whole, streams, stream)


# --- a real model ----------------------------------------------------------------------------

GREEDY = Sampling(temperature=0)
TOPICS = ("the sea", "a dog", "winter", "Rome", "music", "bread", "the moon", "trains", "tea")


@pytest.fixture(scope="module")
def worker(llama_python: str, models_dir: Path) -> Iterator[WorkerProcess]:
    """First 4 columns of 1024 cells."""
    worker = WorkerProcess(
        llama_python, models_dir / CHAT_MODEL, n_ctx=4096, kv_cells=4096, slots=8
    )
    yield worker
    worker.close()


def forced(topic: str, tale: str, **more: Any) -> Complete:
    """An answer that is given: how likely it is tells whether the model saw what it should."""
    return Complete(
        prompt=f"A text about {topic}:",
        grammar=f'root ::= "{topic}{tale}"',
        sampling=GREEDY,
        top_logprobs=0,
        **{"max_tokens": 400, **more},
    )


@pytest.mark.llama
def test_cells_come_when_they_are_needed_and_are_announced_before(
    llama_python: str, models_dir: Path
) -> None:
    worker = WorkerProcess(llama_python, models_dir / CHAT_MODEL, n_ctx=4096, slots=32)
    try:
        assert worker.ready is not None
        facts, unused = worker.ready.facts, worker.ready.memory["unused"]
        assert unused == facts["kv_bytes"] * (16384 - 4096) // 16384
        worker.run(Complete(prompt="one " * 90, max_tokens=8))
        worker.idle()
        assert worker.beats[-1].memory["unused"] == unused
        asked = worker.ask(Complete(prompt="one " * 900, max_tokens=8))
        worker.until(lambda: worker.beats[-1].memory["unused"] == 0)
        assert not worker.answers[asked].deltas, "it is said before it is taken"
        worker.wait(asked)
    finally:
        worker.close()


@pytest.mark.llama
@pytest.mark.parametrize("model", [CHAT_MODEL, "gemma-3-270m.Q4_K_M.gguf"])
def test_a_models_cells_are_divided_unless_that_is_not_wanted(
    llama_python: str, models_dir: Path, model: str
) -> None:
    for unified, columns in ((False, 8), (True, 0)):
        options = {"n_ctx": 1024, "kv_cells": 4096, "slots": 8, "kv_unified": unified}
        worker = WorkerProcess(llama_python, models_dir / model, **options)
        worker.close()
        assert worker.ready is not None
        assert worker.ready.facts["kv_columns"] == columns


@pytest.mark.llama
@pytest.mark.parametrize("arrivals", ["many", "long", "many and long"])
def test_running_answers_go_on_when_the_cells_are_laid_out_anew(
    worker: WorkerProcess, arrivals: str
) -> None:
    """More requests than columns, a prompt longer than a column, and both, which takes one pool."""
    worker.idle()
    tale = "".join(f", {topic} or {i}" for i, topic in enumerate(TOPICS))
    tasks = [forced(topic, tale) for topic in TOPICS[:3]]
    alone = [worker.run(task) for task in tasks]
    names = [worker.ask(task) for task in tasks]
    worker.until(lambda: all(len(worker.answers[n].deltas) > 5 for n in names))
    late = []
    if "many" in arrivals:
        late += [worker.ask(forced(t, " is old.")) for t in TOPICS[3:8]]
    if "long" in arrivals:
        late.append(worker.ask(Complete(prompt=[504, 3575] * 700, max_tokens=1, sampling=GREEDY)))
    together = worker.wait(*names)
    assert [a.text() for a in together] == [a.text() for a in alone]
    assert [a.logprobs() for a in together] == [a.logprobs() for a in alone], "to the last bit"
    for topic, answer in zip(TOPICS[3:8], worker.wait(*late), strict=False):
        assert answer.done is not None
        if "many" in arrivals:
            assert answer.text() == f"{topic} is old."


@pytest.mark.llama
def test_an_answer_that_outgrows_its_column_goes_on(worker: WorkerProcess) -> None:
    worker.idle()
    names = [
        worker.ask(
            Complete(prompt=[504, 3575] * length, max_tokens=150, ignore_eos=True, sampling=GREEDY)
        )
        for length in (60, 460, 470)
    ]
    for answer in worker.wait(*names):
        assert answer.done is not None
        assert answer.done.usage["completion_tokens"] == 150


@pytest.mark.llama
def test_a_beginning_is_computed_once_also_between_columns(worker: WorkerProcess) -> None:
    worker.idle()
    system = "You are a careful assistant. " + "Answer briefly and kindly. " * 30
    names = [
        worker.ask(
            Chat(
                messages=[
                    {"role": "system", "content": system},
                    {"role": "user", "content": f"What about {topic}?"},
                ],
                max_tokens=4,
                sampling=GREEDY,
            )
        )
        for topic in TOPICS[:4]
    ]
    usages = [a.done.usage for a in worker.wait(*names) if a.done]
    assert sum(u["prompt_tokens"] - u["cached_tokens"] > 40 for u in usages) == 1


@pytest.mark.llama
def test_a_window_that_left_cells_behind_is_not_seen_from_before(
    llama_python: str, models_dir: Path
) -> None:
    """Gemma's layers look back 512 tokens, and a parked state has no more than that of them: cut
    far back it would lack some, so such a beginning is computed anew."""
    worker = WorkerProcess(
        llama_python, models_dir / "gemma-3-270m.Q4_K_M.gguf", n_ctx=2048, kv_cells=2048, slots=2
    )
    try:
        prompt = [1000 + i % 50 for i in range(900)]
        others = [[2000 + k] * 900 for k in range(3)]
        for tokens in (prompt, *others):  # the first one is parked in the end
            worker.run(Complete(prompt=tokens, max_tokens=1))
        longer = worker.run(Complete(prompt=[*prompt, 7, 8, 9], max_tokens=1))
        branch = worker.run(Complete(prompt=[*others[0][:700], 7, 8, 9], max_tokens=1))
        assert longer.done is not None
        assert branch.done is not None
        assert longer.done.usage["cached_tokens"] >= 899
        assert branch.done.usage["cached_tokens"] == 0
    finally:
        worker.close()


@pytest.mark.llama
def test_a_window_that_was_moved_while_it_ran_is_not_seen_from_before(
    llama_python: str, models_dir: Path
) -> None:
    """When cells are laid out anew a running answer takes along what its windows see, and no more:
    what is asked of it later from further back is computed anew."""
    worker = WorkerProcess(
        llama_python, models_dir / "gemma-3-270m.Q4_K_M.gguf", n_ctx=2048, kv_cells=4096, slots=4
    )
    try:
        prompt = [1000 + i % 50 for i in range(900)]
        running = worker.ask(
            Complete(prompt=prompt, max_tokens=40, ignore_eos=True, sampling=GREEDY)
        )
        worker.until(lambda: len(worker.answers[running].deltas) > 2)
        longer = worker.ask(Complete(prompt=[2000 + i % 60 for i in range(1100)], max_tokens=1))
        worker.wait(running, longer)
        branch = worker.run(Complete(prompt=[*prompt[:700], 7, 8, 9], max_tokens=1))
        assert branch.done is not None
        assert branch.done.usage["cached_tokens"] == 0
        again = worker.run(Complete(prompt=[*prompt, 7, 8, 9], max_tokens=1))
        assert again.done is not None
        assert again.done.usage["cached_tokens"] >= 700, "the end of it is all there"
    finally:
        worker.close()
