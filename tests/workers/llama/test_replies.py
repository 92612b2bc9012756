"""Reasoning and tool calls in an answer's text, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol.errors import BadRequest
from uml.workers.backends.llama_cpp import tools
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
    """All deltas of an answer put together."""
    reply = ChatReply(how.pop("known", ()), **how)
    deltas = []
    while text:
        cut = data.draw(st.integers(1, len(text))) if data else 1
        deltas += reply.feed(text[:cut])
        text = text[cut:]
    deltas += reply.end()
    return {
        "text": "".join(d for d in deltas if isinstance(d, str)),
        "reasoning": "".join(d.get("reasoning", "") for d in deltas if isinstance(d, dict)),
        "calls": [
            (call["index"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for d in deltas
            if isinstance(d, dict)
            for call in d.get("tool_calls", [])
        ],
        "finish": reply.finish("stop"),
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


@given(
    st.sampled_from(
        [
            f"<tool_call>\n{CALL}\n</tool_call>",
            f"[TOOL_CALLS][{CALL}]",
            f"[TOOL_CALLS] [{CALL}]",
            CALL.replace("arguments", "parameters"),
            f"<|python_tag|>{CALL}",
            f"[{CALL}]",
            f"<think>hm</think>\n<tool_call>{CALL}</tool_call>",
        ]
    ),
    st.data(),
)
def test_tool_calls_of_all_families_are_found(text: str, data: st.DataObject) -> None:
    got = read(text, data, known=["weather"])
    assert got["calls"] == [(0, "weather", {"city": "Rome"})]
    assert got["text"] == ""
    assert got["finish"] == "tool_calls"


def test_several_calls_and_text_before_them() -> None:
    text = f"Let me see. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>"
    got = read(text, known=["weather"])
    assert got["text"] == "Let me see. "
    assert [index for index, _, _ in got["calls"]] == [0, 1]
    assert len(read(text, known=["weather"], several=False)["calls"]) == 1


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
