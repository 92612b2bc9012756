"""Reasoning and tool calls in an answer's text, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.llama.driver import calls
from uml.protocol.errors import BadRequest
from uml.workers.backends.llama_cpp import tools
from uml.workers.backends.llama_cpp.channels import ChannelReply
from uml.workers.backends.llama_cpp.dialects import DIALECTS, GENERIC, Dialect
from uml.workers.backends.llama_cpp.replies import ChatReply

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'


def read(text: str, data: st.DataObject | None = None, **how: Any) -> dict[str, Any]:
    """All deltas of an answer put together, as a client does it."""
    reply: Any = how.pop("reader", ChatReply)(how.pop("known", ()), **how)
    deltas = []
    while text:
        cut = data.draw(st.integers(1, len(text))) if data else 1
        deltas += reply.feed(text[:cut])
        text = text[cut:]
    deltas += reply.end()
    return {
        "text": "".join(d for d in deltas if isinstance(d, str)),
        "reasoning": "".join(d.get("reasoning", "") for d in deltas if isinstance(d, dict)),
        "calls": [(name, json.loads(arguments)) for name, arguments in calls(deltas)],
        "finish": reply.finish("stop"),
        "pieces": len(deltas),
    }


@given(st.text("ab <think>/{}[]\n", max_size=40), st.data())
def test_text_without_marks_is_left_alone(text: str, data: st.DataObject) -> None:
    text = "a" + text
    assert read(text, data)["text"] == text


@given(st.data())
def test_reasoning_is_told_from_the_answer(data: st.DataObject) -> None:
    got = read("<think>\nwell, 2 < 3\n</think>\n\nYes <b>.", data)
    assert got["reasoning"] == "well, 2 < 3\n"
    assert got["text"] == "Yes <b>."
    assert got["finish"] == "stop"


def test_reasoning_may_begin_in_the_prompt_and_never_end() -> None:
    assert read("hm</think>Yes", thinking=True)["reasoning"] == "hm"
    assert read("hm, let", thinking=True)["reasoning"] == "hm, let"


def test_think_in_the_middle_is_text() -> None:
    assert read("Write <think>x</think>")["text"] == "Write <think>x</think>"


def written(dialect: Dialect, *calls: tuple[str, Any]) -> str:
    """Calls as a model of that family writes them."""
    texts = (dialect.head + n + dialect.middle + json.dumps(a) + dialect.tail for n, a in calls)
    return dialect.begin + dialect.between.join(texts) + dialect.end


ARGUMENTS = st.recursive(
    st.one_of(st.text('a"\\{}[]<> \n', max_size=8), st.integers(), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text('k"}', max_size=2), inner),
    max_leaves=5,
)


@given(
    st.sampled_from([d for d in (*DIALECTS, GENERIC) if d.name != "harmony"]),
    st.dictionaries(st.sampled_from(["city", "day"]), ARGUMENTS),
    st.data(),
)
def test_calls_of_all_families_are_read_however_they_are_cut(
    dialect: Dialect, arguments: dict[str, Any], data: st.DataObject
) -> None:
    several = [("weather", arguments), ("time", {})][: 2 if dialect.parallel else 1]
    before = data.draw(st.sampled_from(["", "<think>hm</think>\n\n"]))
    got = read(before + written(dialect, *several), data, known=["weather", "time"])
    assert got["calls"] == several
    assert got["text"] == ""
    assert got["reasoning"] == ("hm" if before else "")
    assert got["finish"] == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [
        f"[TOOL_CALLS] [{CALL}]",
        f"<|python_tag|>{CALL.replace('arguments', 'parameters')}",
        f"[{CALL}]",
        f"<tool_call>{CALL}</tool_call>",
        '[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{"city": "Rome"}',
        '[TOOL_CALLS]weather{"city": "Rome"}',
        '<tool_call>{"arguments": {"city": "Rome"}, "name": "weather"}</tool_call>',
        '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}',
        '{"type": "function", "function": {"name": "weather", "parameters": {"city": "Rome"}}}',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}, "id": "abc123def"}]',
    ],
)
def test_variants_that_models_write_are_read(text: str) -> None:
    assert read(text, known=["weather"])["calls"] == [("weather", {"city": "Rome"})]


def test_arguments_are_sent_on_as_they_come() -> None:
    long = json.dumps({"city": "Rome " * 20})
    reply = ChatReply(["weather"])
    first = reply.feed('<tool_call>\n{"name": "weather", "arguments": ')
    assert first == []
    (begun,) = reply.feed(long[:1])[:1]
    assert isinstance(begun, dict)
    assert begun["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}
    for char in long[1:]:
        (delta,) = reply.feed(char)
        assert delta == {"tool_calls": [{"index": 0, "function": {"arguments": char}}]}
    assert reply.feed("}\n</tool_call>") + reply.end() == []


def test_call_cut_by_the_limit_keeps_its_reason() -> None:
    reply = ChatReply(["weather"])
    assert reply.feed('<tool_call>{"name": "weather", "arguments": {"ci')
    assert reply.end() == []
    assert reply.finish("length") == "length"


def test_several_calls_and_text_before_and_after_them() -> None:
    text = f"Let me see. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\nDone."
    got = read(text, known=["weather"])
    assert got["text"] == "Let me see. Done."
    assert [name for name, _ in got["calls"]] == ["weather", "weather"]
    assert len(read(text, known=["weather"], several=False)["calls"]) == 1


def test_json_that_is_no_call_streams_as_text() -> None:
    reply = ChatReply(["weather"])
    assert reply.feed('{"cit') == ['{"cit']
    assert reply.feed('y": 1}') == ['y": 1}']


@given(st.data())
def test_channels_of_gpt_oss_are_told_apart(data: st.DataObject) -> None:
    text = (
        "<|channel|>analysis<|message|>Well <b>.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>Looking.<|end|><|start|>assistant"
    )
    call = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    got = read(text + call + '{"city": "Rome"}', data, known=["weather"], reader=ChannelReply)
    assert (got["reasoning"], got["text"]) == ("Well <b>.", "Looking.")
    assert got["calls"] == [("weather", {"city": "Rome"})]
    final = text + "<|channel|>final<|message|>Yes < 3"
    assert read(final, data, reader=ChannelReply)["text"] == "Looking.Yes < 3"
    assert read("Plain {text}", data, reader=ChannelReply)["text"] == "Plain {text}"


@given(st.data())
def test_reasoning_may_stay_in_the_text(data: st.DataObject) -> None:
    text = "<think>\nwell\n</think>\n\nYes."
    assert read(text, data, split=False)["text"] == text


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '{"just": "json"}',
        "[1, 2]",
        "<tool_call>{",
    ],
)
def test_what_is_no_call_of_a_known_tool_stays_text(text: str) -> None:
    got = read(text, known=["weather"])
    assert got["calls"] == []
    assert got["text"].replace("<tool_call>", "") == text.replace("<tool_call>", "")


def test_marks_mean_nothing_without_tools() -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert read(text)["text"] == text


def test_tool_choice_says_which_tools_are_wanted() -> None:
    both = [WEATHER, TIME]
    assert tools.wanted(both, "auto") == tools.wanted(both, None) == []
    assert tools.wanted(both, "required") == both
    assert tools.wanted(both, {"type": "function", "function": {"name": "time"}}) == [TIME]
    for tool_list, choice in (([], "required"), (both, {"function": {"name": "x"}}), (both, "x")):
        with pytest.raises(BadRequest):
            tools.wanted(tool_list, choice)


def test_tools_without_a_name_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"tools\[1\]"):
        tools.names([WEATHER, {"type": "function"}])


def test_templates_without_tools_get_them_described() -> None:
    call = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    out = tools.describe(messages, [WEATHER])
    assert out[0]["content"].startswith("Be brief.")
    assert '"weather"' in out[0]["content"]
    assert CALL in out[2]["content"]
    assert out[3] == {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}
    assert tools.describe(messages[1:2], [WEATHER])[0]["role"] == "system"
