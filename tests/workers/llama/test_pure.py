"""The parts of the llama.cpp backend that need no library."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol.errors import BadRequest, LoadFailed, TaskNotSupported
from uml.workers.backends.llama_cpp import messages, options, plan, prefix
from uml.workers.backends.llama_cpp.cells import Cells
from uml.workers.backends.llama_cpp.text import TextStream, incomplete

# --- text ------------------------------------------------------------------------------------

TEXTS = st.text(alphabet=st.sampled_from("ab\nSTOP é漢😀"), max_size=40)


@given(TEXTS, st.data())
def test_text_comes_out_whole_however_its_bytes_are_cut(text: str, data: st.DataObject) -> None:
    raw, stream, out = text.encode(), TextStream(), ""
    while raw:
        cut = data.draw(st.integers(1, len(raw)))
        out += stream.feed(raw[:cut])
        raw = raw[cut:]
    assert out + stream.end() == text


@given(TEXTS, st.lists(st.text("ab\nSTOP é😀", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    raw, stream, out = text.encode(), TextStream(stops), ""
    while raw:
        cut = data.draw(st.integers(1, len(raw)))
        out += stream.feed(raw[:cut])
        raw = raw[cut:]
    assert "\ufffd" not in out
    assert not any(stop in out for stop in stops)
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert stream.stopped == bool(found)
    if not found:
        assert out + stream.end() == text
    else:
        # Byte by byte, some stop is complete first; it need not be the one that begins first.
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)


def test_text_holds_back_what_may_become_a_stop_and_gives_it_when_it_does_not() -> None:
    stream = TextStream(["###"])
    assert stream.feed(b"a##") == "a"
    assert stream.feed(b"b") == "##b"
    assert stream.feed(b"#") == ""
    assert stream.end() == "#"


def test_text_never_shows_half_a_character() -> None:
    stream = TextStream()
    assert [stream.feed(bytes([b])) for b in "😀".encode()] == ["", "", "", "😀"]
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.end() == ""


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"a", 0), (b"\xc3", 1), (b"\xc3\xa9", 0), (b"\xf0\x9f\x98", 3), (b"\xff", 0)],
)
def test_incomplete_counts_the_open_bytes(data: bytes, expected: int) -> None:
    assert incomplete(data) == expected


# --- cells -----------------------------------------------------------------------------------


@given(st.data(), st.booleans())
def test_cells_are_counted_as_sets_would_count_them(data: st.DataObject, buries: bool) -> None:
    """Against a model in which every cell has a name and each sequence lists its cells."""
    cells, model, fresh = Cells(10_000, 4, buries=buries), [list[int]() for _ in range(4)], 0
    dead: set[int] = set()

    def leave(sequence: int, count: int) -> None:
        """What nobody has any more is the end of what the sequence had, from the place it says."""
        before = model[sequence]
        model[sequence] = before[:count]
        lost = set(before) - set().union(*model)
        where = cells.truncate(sequence, count)
        assert lost == (set() if where is None else set(before[where:]))
        dead.update(lost if buries else ())

    for _ in range(data.draw(st.integers(1, 25))):
        a, b = data.draw(st.permutations(range(4)))[:2]
        match data.draw(st.sampled_from(["append", "copy", "leave", "free"])):
            case "append":
                count = data.draw(st.integers(0, 9))
                cells.append(a, count)
                model[a] += range(fresh, fresh + count)
                fresh += count
            case "copy":
                leave(b, 0)
                count = data.draw(st.integers(0, len(model[a])))
                cells.copy(a, b, count)
                model[b] = model[a][:count]
            case "leave":
                leave(a, data.draw(st.integers(0, len(model[a]) + 2)))
            case _:
                cells.free_dead()
                dead.clear()
        assert [cells.length(i) for i in range(4)] == [len(m) for m in model]
        assert cells.common(a, b) == len(set(model[a]) & set(model[b]))
        assert cells.dead == len(dead)
        assert cells.used == len(set().union(*model)) + len(dead)


# --- plan ------------------------------------------------------------------------------------


@given(
    st.integers(0, 600),
    st.lists(st.integers(1, 500), max_size=8),
    st.integers(0, 600),
    st.integers(0, 3),
)
def test_share_begins_with_the_oldest_and_the_shortest_by_turns_and_others_get_all_or_nothing(
    budget: int, waiting: list[int], most: int, turn: int
) -> None:
    given_out = plan.share(budget, waiting, most, turn)
    assert len(given_out) == len(waiting)
    assert sum(given_out) <= min(most, max(budget + budget // 2, 1))
    if not waiting or not min(budget, most):
        assert not any(given_out)
        return
    first = 0 if turn % 2 == 0 else waiting.index(min(waiting))
    assert 0 < given_out[first] <= waiting[first]
    assert all(n in (0, waiting[i]) for i, n in enumerate(given_out) if i != first)


def test_share_cuts_a_prompt_into_equal_parts_and_begins_none_that_it_cannot_end() -> None:
    assert plan.share(75, [98], 512) == [98]
    assert plan.share(75, [120], 512) == [60]
    assert plan.share(512, [1500], 512) == [500]
    assert plan.share(120, [98, 98], 512) == [98, 0]
    assert plan.share(200, [98, 98, 3], 512) == [98, 98, 3]
    assert plan.share(200, [98, 98], 150) == [98, 0]


def test_pace_bounds_a_chunk_by_the_time_it_takes() -> None:
    pace = plan.Pace(rate=1000)
    assert pace.chunk(answering=4, waiting=0) == 150
    assert pace.chunk(answering=0, waiting=2) == 400
    assert pace.chunk(answering=5, waiting=5) == pytest.approx(275, abs=1)
    for _ in range(50):
        pace.observe(100, 1.0)
    assert pace.chunk(answering=1, waiting=0) == pytest.approx(15, abs=1)


def test_pace_always_makes_progress() -> None:
    assert plan.Pace(rate=0.1).chunk(answering=30, waiting=1) > 0


# --- prefixes --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_is_the_longest_common_beginning(a: list[int], b: list[int]) -> None:
    n = prefix.common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_shelf_keeps_to_its_bytes_and_drops_the_least_recently_used() -> None:
    shelf = prefix.Shelf(100)
    for i in range(3):
        shelf.put(prefix.Parked([i, 7], None, 40))
    assert (len(shelf), shelf.bytes) == (2, 80)
    assert shelf.best([0, 7])[0] is None
    first, length = shelf.best([1, 7, 9])
    assert first is not None
    assert length == 2
    shelf.touch(first)
    shelf.put(prefix.Parked([5], None, 40))
    assert shelf.best([1, 7])[0] is first
    assert shelf.best([2, 7])[0] is None


def test_shelf_replaces_a_conversation_by_its_continuation() -> None:
    shelf = prefix.Shelf(100)
    shelf.put(prefix.Parked([1, 2], None, 10))
    shelf.put(prefix.Parked([1, 2, 3], None, 10))
    assert len(shelf) == 1
    assert shelf.covers([1, 2])
    assert not shelf.covers([1, 2, 3, 4])


# --- options ---------------------------------------------------------------------------------


def test_options_have_defaults_that_follow_the_context() -> None:
    read = options.read({}, trained=8192)
    assert (read.n_ctx, read.slots, read.kv_cells, read.n_batch) == (4096, 32, 16384, 512)
    assert options.read({"slots": 1}, trained=1000).kv_cells == 1024
    assert options.read({"n_ctx": 9000}, trained=8192).n_ctx == 8192


def test_options_make_a_pool_that_holds_one_whole_context() -> None:
    read = options.read({"n_ctx": 1000, "kv_cells": 10}, trained=8192)
    assert read.kv_cells == 1024


def test_options_give_an_encoder_room_for_a_whole_text() -> None:
    read = options.read({"n_batch": 64}, trained=700, embedding=True)
    assert read.n_batch == read.n_ubatch == read.kv_cells == 768


@pytest.mark.parametrize(
    "given_options",
    [{"n_ctx": "many"}, {"n_ctx": 0}, {"slots": 65}, {"cache_type_k": "q9"}, {"mmap": 1}],
)
def test_options_name_what_is_wrong(given_options: dict[str, object]) -> None:
    (key,) = given_options
    with pytest.raises(LoadFailed) as e:
        options.read(given_options, trained=4096)
    assert e.value.param == key
    assert key in e.value.message


# --- messages --------------------------------------------------------------------------------


def test_messages_become_what_templates_expect() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
    out = messages.normalise(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
    )
    assert [m["role"] for m in out] == ["system", "user", "assistant"]
    assert [m["content"] for m in out] == ["be brief", "a\nb", ""]
    assert out[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    back = messages.arguments_as_text(out)
    assert back[2]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize(
    ("given_messages", "error"),
    [
        ([], BadRequest),
        (["hello"], BadRequest),
        ([{"content": "x"}], BadRequest),
        ([{"role": "user", "content": 3}], BadRequest),
        ([{"role": "user", "content": [{"type": "image_url"}]}], TaskNotSupported),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], BadRequest),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            BadRequest,
        ),
    ],
)
def test_messages_that_make_no_sense_are_refused(
    given_messages: list[object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        messages.normalise(given_messages)  # type: ignore[arg-type]


def test_system_text_moves_into_the_users_message() -> None:
    merged = messages.merge_system(
        [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    )
    assert merged == [{"role": "user", "content": "s\n\nu"}]
