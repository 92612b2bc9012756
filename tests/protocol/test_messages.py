"""Messages, tasks and errors survive the wire; what does not fit is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uml.protocol import errors, frames, messages, tasks
from uml.protocol.errors import ProtocolError

SAMPLES: list[messages.Message] = [
    messages.Load("m", ["/a.gguf"], {"n_ctx": 10}, {"ram": 5}, 2),
    messages.Request("r1", "chat", {"messages": []}),
    messages.Part("r1", b"\x00\xff", True),
    messages.Cancel("r1"),
    messages.Prepare(["/models/m.gguf"]),
    messages.Credit("r1", 100),
    messages.Threads(2),
    messages.Hello("fake", 7, [1, 0], {"x": "1"}),
    messages.Progress("weights", 0.5),
    messages.Progress("weights"),
    messages.Ready(4, {"n_ctx": 1}, {"ram": 1}),
    messages.Chunks([["r1", 0, "text"], ["r2", 1, b"pcm"], ["r3", 0, {"reasoning": "hm"}]]),
    messages.Done("r1", ["stop"], {"prompt_tokens": 1}, {"prefill_s": 0.1}),
    messages.Error({"code": "x"}, "r1"),
    messages.Beat(1, 2, 3, {"ram": 4}),
    messages.Log("info", "event", {"a": 1}),
]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: m.t)
def test_message_survives_the_wire(message: messages.Message) -> None:
    (data,) = frames.Decoder().feed(messages.pack(message))
    assert messages.parse(data) == message


def test_every_message_has_a_sample() -> None:
    assert {type(m) for m in SAMPLES} == {*messages.TO_WORKER, *messages.FROM_WORKER}


def test_unknown_keys_of_a_newer_peer_are_ignored() -> None:
    assert messages.parse({"t": "cancel", "id": "r1", "why": "new"}) == messages.Cancel("r1")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "unknown message type"),
        ({"t": "nope"}, "unknown message type 'nope'"),
        ({"t": ["load"]}, "unknown message type"),
        ({"t": "cancel"}, "cancel: id is missing"),
        ({"t": "cancel", "id": 5}, "cancel: id is int"),
        ({"t": "credit", "id": "r", "amount": True}, "credit: amount is bool"),
        ({"t": "part", "id": "r", "data": "text"}, "part: data is str"),
        ({"t": "chunks", "items": {}}, "chunks: items is dict"),
        ({"t": "progress", "stage": "s", "fraction": "half"}, "progress: fraction is str"),
    ],
)
def test_wrong_message_is_a_protocol_error(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        messages.parse(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


anything_packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.sampled_from([m.t for m in SAMPLES]), st.dictionaries(st.text(), anything), st.data())
def test_any_map_is_a_message_or_a_protocol_error(
    name: str, extra: dict[str, Any], data: st.DataObject
) -> None:
    cls = next(type(m) for m in SAMPLES if m.t == name)
    fields = {
        f.name: data.draw(anything) for f in dataclasses.fields(cls) if data.draw(st.booleans())
    }
    try:
        assert isinstance(messages.parse({**extra, **fields, "t": name}), cls)
    except ProtocolError as e:
        assert e.message


@pytest.mark.parametrize(
    ("delta", "size"), [("abc", 3), ("\u00e9", 2), (b"1234", 4), ({"text": "a"}, 8)]
)
def test_delta_counts_its_bytes(delta: Any, size: int) -> None:
    assert messages.delta_bytes(delta) == size


deltas = st.text() | st.binary() | st.dictionaries(st.text(), anything_packable, max_size=4)


@given(deltas)
def test_delta_counts_the_same_on_both_sides(delta: Any) -> None:
    (data,) = frames.Decoder().feed(messages.pack(messages.Chunks([["r1", 0, delta]])))
    assert messages.delta_bytes(data["items"][0][2]) == messages.delta_bytes(delta)


@given(st.sampled_from([*tasks.TASKS, "fly"]), st.data())
def test_any_map_reads_as_a_task_or_a_protocol_error(name: str, data: st.DataObject) -> None:
    known = [f.name for f in dataclasses.fields(tasks.TASKS[name])] if name in tasks.TASKS else []
    keys = st.sampled_from([*known, "sampling", "newer"]) | st.text()
    try:
        assert tasks.read(name, data.draw(st.dictionaries(keys, anything))).name == name
    except ProtocolError as e:
        assert e.message


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_task_survives_the_wire(name: str) -> None:
    task = tasks.TASKS[name]()
    assert tasks.read(name, task.to_wire()) == task


def test_task_with_values_survives_and_unknown_keys_are_ignored() -> None:
    task = tasks.Chat(
        messages=[{"role": "user", "content": "hi"}],
        stop=["\n"],
        sampling=tasks.Sampling(temperature=0.0, logit_bias={"5": -100.0}),
        json_schema={},
    )
    wire = task.to_wire() | {"new": 1}
    wire["sampling"]["newer"] = 2
    assert tasks.read("chat", wire) == task


def test_unknown_task_is_a_protocol_error_and_names_cannot_be_taken_twice() -> None:
    with pytest.raises(ProtocolError, match="unknown task"):
        tasks.read("fly", {})
    with pytest.raises(ValueError, match="taken"):
        tasks.register(type("Other", (tasks.Task,), {"name": "chat"}))


def tree(cls: type[errors.UmlError]) -> list[type[errors.UmlError]]:
    return [cls, *(e for sub in cls.__subclasses__() for e in tree(sub))]


@pytest.mark.parametrize(
    "cls", [c for c in tree(errors.UmlError) if c.__module__ == errors.__name__]
)
def test_error_survives_the_wire(cls: type[errors.UmlError]) -> None:
    error = cls("why", param="p", retry_after_s=2.5, detail={"a": 1})
    again = errors.from_wire(error.to_wire())
    assert (again.code, again.status, again.retryable) == (cls.code, cls.status, cls.retryable)
    assert (again.message, again.param, again.retry_after_s) == ("why", "p", 2.5)
    body = error.to_openai()["error"]
    assert set(body) == {"message", "type", "param", "code"} and body["message"] == "why"


@given(st.text(st.characters(exclude_categories=())))
@example("/models/\udcff.gguf")
def test_error_can_be_said_whatever_its_message_holds(text: str) -> None:
    """A file name that is no UTF-8 reaches messages as lone surrogates."""
    error = errors.LoadFailed(text)
    (data,) = frames.Decoder().feed(messages.pack(messages.Error(error.to_wire())))
    said = errors.from_wire(data["error"]).message
    assert said == (text.encode("utf-8", "replace").decode() or "load_failed")


@pytest.mark.parametrize("data", [None, 5, "x", [], {}, {"code": 3}, {"detail": 3, "message": 4}])
def test_malformed_error_is_still_an_error(data: Any) -> None:
    assert isinstance(errors.from_wire(data), errors.UmlError)


def test_unknown_code_keeps_whether_a_retry_helps() -> None:
    assert errors.from_wire({"code": "new", "status": 503, "message": "m"}).retryable
    assert not errors.from_wire({"code": "new", "status": 418, "message": "m"}).retryable
