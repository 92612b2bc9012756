"""Chunks and whole answers, shape by shape, without a server."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from tests.supervisor.served import events
from uml.protocol.errors import InternalError
from uml.supervisor.api import answers
from uml.supervisor.api.answers import Collector
from uml.supervisor.api.streams import ChatStream, CompletionStream
from uml.supervisor.api.waiting import Wait

TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top": []}
SHOWN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


class Outlet:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def send(self, text: str) -> None:
        self.texts.append(text)

    def backlog(self) -> int:
        return 0


def chat_stream(usage: bool = False) -> tuple[ChatStream, Outlet]:
    outlet = Outlet()
    return ChatStream(outlet, "the/model", usage), outlet  # type: ignore[arg-type]


def said(outlet: Outlet) -> list[Any]:
    assert all(t.startswith("data: ") and t.endswith("\n\n") for t in outlet.texts)
    return events("".join(outlet.texts))


def test_chat_stream_is_openais_to_the_byte() -> None:
    sink, outlet = chat_stream()
    sink.chunk(0, "Hel\n")
    sink.chunk(0, 'lo "\u00fc\u2028\U0001f600"')
    sink.end(["stop"], {})
    first = json.loads(outlet.texts[0][6:])
    assert first["id"].startswith("chatcmpl-") and len(first["id"]) > 20
    prefix = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk",'
        f'"created":{first["created"]},"model":"the/model",'
        f'"system_fingerprint":"{answers.FINGERPRINT}","choices":[{{"index":0,"delta":'
    )
    tail = ',"logprobs":null,"finish_reason":null}]}\n\n'
    assert outlet.texts == [
        f'{prefix}{{"role":"assistant","content":"","refusal":null}}{tail}',
        f'{prefix}{{"content":"Hel\\n"}}{tail}',
        f'{prefix}{{"content":"lo \\"\u00fc\u2028\U0001f600\\""}}{tail}',
        f'{prefix}{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n',
        "data: [DONE]\n\n",
    ]


def test_chat_stream_tells_usage_when_asked() -> None:
    sink, outlet = chat_stream(usage=True)
    sink.chunk(0, "x")
    sink.end(["length"], {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3})
    *chunks, last, done = said(outlet)
    assert done == "[DONE]" and all(c["usage"] is None for c in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_chat_stream_of_several_choices_starts_and_ends_each() -> None:
    sink, outlet = chat_stream()
    for index, text in ((1, "b"), (0, "a"), (1, "c")):
        sink.chunk(index, text)
    sink.end(["stop", "length", "stop"], {})
    choices = [c["choices"][0] for c in said(outlet)[:-1]]
    roles = [c["index"] for c in choices if c["delta"].get("role")]
    texts = [(c["index"], c["delta"]["content"]) for c in choices if c["delta"].get("content")]
    ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
    assert sorted(roles) == [0, 1, 2], "a choice without output has its first chunk too"
    assert texts == [(1, "b"), (0, "a"), (1, "c")]
    assert ends == [(0, "stop"), (1, "length"), (2, "stop")]


def test_chat_stream_of_rarer_deltas() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    sink, outlet = chat_stream()
    sink.chunk(0, {"reasoning": "hm"})
    sink.chunk(0, {"text": "a", "logprobs": [TOKEN]})
    sink.chunk(0, {"tool_calls": [call]})
    sink.chunk(0, {})
    sink.end(["tool_calls"], {})
    choices = [c["choices"][0] for c in said(outlet)[1:-1]]
    assert choices[0]["delta"] == {"reasoning_content": "hm"}
    assert choices[1]["delta"] == {"content": "a"}
    assert choices[1]["logprobs"] == {"content": [SHOWN], "refusal": None}
    assert choices[2]["delta"] == {"tool_calls": [call]}
    assert choices[3]["finish_reason"] == "tool_calls" and len(choices) == 4


def test_completion_stream_shape_and_offsets() -> None:
    outlet = Outlet()
    sink = CompletionStream(outlet, "m", False)  # type: ignore[arg-type]
    sink.chunk(0, "plain")
    sink.chunk(1, "echo")
    sink.chunk(1, {"text": "a", "logprobs": [TOKEN]})
    sink.chunk(1, {"text": "a", "logprobs": [TOKEN]})
    sink.end(["stop", "stop"], {})
    *chunks, done = said(outlet)
    assert done == "[DONE]" and all(c["object"] == "text_completion" for c in chunks)
    choices = [c["choices"][0] for c in chunks]
    assert choices[0] == {"index": 0, "text": "plain", "logprobs": None, "finish_reason": None}
    assert [c["logprobs"]["text_offset"] for c in choices[2:4]] == [[4], [5]]
    assert [c["finish_reason"] for c in choices[4:]] == ["stop", "stop"]


def test_chat_answer_collects_all_kinds_of_output() -> None:
    sink = Collector()
    sink.chunk(0, "Hi ")
    sink.chunk(0, {"text": "there", "logprobs": [TOKEN]})
    sink.chunk(0, {"reasoning": "hm"})
    for piece in ({"name": "f", "arguments": '{"a"'}, {"arguments": ":1}"}):
        sink.chunk(1, {"tool_calls": [{"index": 0, "id": "c", "function": piece}]})
    answer = answers.chat_answer("m", sink, ["stop", "tool_calls"], {}, True, {})
    first, second = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["model"] == "m"
    assert first["message"] == {
        "role": "assistant",
        "content": "Hi there",
        "refusal": None,
        "reasoning_content": "hm",
    }
    assert first["logprobs"]["content"] == [SHOWN] and first["finish_reason"] == "stop"
    function = {"name": "f", "arguments": '{"a":1}'}
    assert second["message"]["content"] is None
    assert second["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": function}
    ]


def test_completion_answer_has_the_older_logprobs() -> None:
    sink = Collector()
    other = TOKEN | {"top": [{"token": "b", "logprob": -2.0}]}
    sink.chunk(0, "echoed ")
    sink.chunk(0, {"text": "aa", "logprobs": [TOKEN, other]})
    answer = answers.completion_answer("m", sink, ["stop"], {}, True, {})
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "a"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{}, {"b": -2.0}],
        "text_offset": [7, 8],
    }


def test_embedding_answer_keeps_every_bit_of_a_float32() -> None:
    values = struct.unpack("<3f", struct.pack("<3f", 0.1, -1e-8, 0.333333333))
    packed = struct.pack("<3f", *values)
    floats = json.loads(answers.embedding_answer("m", {0: packed}, 1, "float", {}))
    assert struct.pack("<3f", *floats["data"][0]["embedding"]) == packed
    coded = json.loads(answers.embedding_answer("m", {0: packed}, 1, "base64", {}))
    assert base64.b64decode(coded["data"][0]["embedding"]) == packed


@pytest.mark.parametrize("vectors", [{}, {0: struct.pack("<2f", float("nan"), 1)}])
def test_embedding_answer_is_no_answer_without_finite_vectors(vectors: dict[int, bytes]) -> None:
    with pytest.raises(InternalError):
        answers.embedding_answer("m", vectors, 1, "float", {})


def test_waiting_is_told_in_words_and_headers() -> None:
    wait = Wait()
    assert (wait.comment(), wait.headers()) == ("working", {"X-Model-State": "ready"})
    wait.waiting("loading", 0.42, 0)
    assert (wait.comment(), wait.headers()) == ("loading 42%", {"X-Model-State": "loading"})
    wait.waiting("queued", None, 3)
    assert wait.comment() == "queued, 3 before this"
    assert wait.headers() == {"X-Model-State": "queued", "X-Queue-Position": "3"}
