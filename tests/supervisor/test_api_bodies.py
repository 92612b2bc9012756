"""Bodies to tasks: what is accepted, what is refused and how the field is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.protocol.errors import BadRequest, TaskNotSupported, UmlError
from uml.protocol.tasks import Chat, Complete, Embed, read
from uml.supervisor.api.openai import read_chat, read_completion, read_embedding
from uml.supervisor.config import ModelConfig

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**body: Any) -> Chat:
    own = body.pop("own", ModelConfig())
    task = read_chat({"messages": USER} | body, "m", own).tasks[0]
    assert isinstance(task, Chat)
    return task


def completions(**body: Any) -> list[Complete]:
    tasks = read_completion({"prompt": "p"} | body, ModelConfig()).tasks
    assert all(isinstance(t, Complete) for t in tasks)
    return tasks  # type: ignore[return-value]


# --- chat ----------------------------------------------------------------------------------


def test_chat_defaults_are_openais() -> None:
    task = chat()
    assert (task.max_tokens, task.n, task.stop, task.top_logprobs) == (None, 1, [], None)
    assert (task.sampling.temperature, task.sampling.top_p) == (1.0, 1.0)
    assert task.sampling.repeat_penalty == 1.0 and task.sampling.seed is None


def test_chat_takes_every_parameter_to_its_place() -> None:
    task = chat(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        typ_p=0.9,
        repetition_penalty=1.2,
        repeat_last_n=32,
        frequency_penalty=-1,
        presence_penalty=1,
        mirostat=2,
        mirostat_tau=4,
        mirostat_eta=0.2,
        xtc_probability=0.3,
        xtc_threshold=0.2,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_sequence_breakers=["\n"],
        logit_bias={"5": -100, "007": 1},
        seed=42,
        n=2,
        stop="END",
        ignore_eos=True,
        chat_template_kwargs={"enable_thinking": False},
        logprobs=True,
        top_logprobs=3,
        cache_prompt=True,
        user="me",
        store=True,
        metadata={"a": "b"},
        an_unknown_field=[1],
    )
    s = task.sampling
    assert (task.max_tokens, task.n, task.stop, task.ignore_eos) == (7, 2, ["END"], True)
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.typical_p) == (0, 0.5, 40, 0.1, 0.9)
    assert (s.repeat_penalty, s.penalty_last_n, s.frequency_penalty) == (1.2, 32, -1)
    assert (s.mirostat, s.mirostat_tau, s.mirostat_eta) == (2, 4, 0.2)
    assert (s.xtc_probability, s.xtc_threshold) == (0.3, 0.2)
    assert (s.dry_multiplier, s.dry_base, s.dry_allowed_length) == (0.8, 2, 3)
    assert s.dry_sequence_breakers == ["\n"]
    assert s.logit_bias == {"5": -100, "7": 1} and s.seed == 42
    assert task.top_logprobs == 3 and task.template_options == {"enable_thinking": False}
    assert read("chat", task.to_wire()) == task


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell", "text": ""}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [*USER, {"role": "user", "content": "", "name": 1}]}, "messages[1].name"),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"mirostat": 3}, "mirostat"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= x"}, "grammar"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "browser"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_chat_refuses_and_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**body)
    assert caught.value.param == param
    assert param.split("[")[0].split(".")[0] in caught.value.message


def test_chat_takes_null_as_not_given() -> None:
    nothing = dict.fromkeys(("temperature", "stop", "n", "tools", "seed", "logit_bias", "stream"))
    assert chat(**nothing) == chat()


def test_chat_joins_text_parts_and_knows_the_newer_role() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    task = chat(
        messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
    )
    assert task.messages == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a\nb"},
    ]


def test_chat_with_an_image_is_not_supported_by_a_text_model() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(TaskNotSupported) as caught:
        chat(messages=[{"role": "user", "content": [image]}])
    assert caught.value.param == "messages[0].content[0]"


def test_chat_keeps_a_turn_of_tool_calls() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    task = chat(messages=turns, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    assert task.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert task.messages[2] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert task.tools[0]["function"]["name"] == "f"
    assert (task.tool_choice, task.parallel_tool_calls) == ("auto", False)


def test_chat_structure_becomes_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert chat(response_format={"type": "text"}).json_schema is None
    assert chat(response_format={"type": "json_object"}).json_schema == {}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert chat(response_format=named).json_schema == schema
    assert chat(json_schema=schema).json_schema == schema
    assert chat(grammar='root ::= "a"').grammar == 'root ::= "a"'


def test_model_defaults_fill_what_the_request_leaves_open() -> None:
    own = ModelConfig(
        sampling={"temperature": 0.3, "repeat_penalty": 1.1, "top_k": 20}, system_prompt="Be kind."
    )
    task = chat(own=own, repetition_penalty=1.5, top_k=None)
    assert (task.sampling.temperature, task.sampling.repeat_penalty) == (0.3, 1.5)
    assert task.sampling.top_k == 20
    assert task.messages[0] == {"role": "system", "content": "Be kind."}
    said = [{"role": "system", "content": "Mine."}, *USER]
    assert chat(own=own, messages=said).messages == said


def test_other_servers_words_for_off_are_understood() -> None:
    task = chat(top_k=-1, seed=-1, max_tokens=-1)
    assert (task.sampling.top_k, task.sampling.seed, task.max_tokens) == (0, None, None)


# --- completions and embeddings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_completion_prompts_in_all_four_forms(prompt: Any, expected: list[Any]) -> None:
    assert [t.prompt for t in completions(prompt=prompt)] == expected


def test_completion_parameters() -> None:
    (task,) = completions(echo=True, suffix="s", logprobs=5, n=3)
    assert (task.echo, task.suffix, task.top_logprobs, task.n) == (True, "s", 5, 3)
    assert task.max_tokens == 16
    assert completions(max_tokens=-1)[0].max_tokens is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_completion_refuses_and_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        completions(**body)
    assert caught.value.param == param


def test_embedding_batches_are_cut_into_slices() -> None:
    asked = read_embedding({"input": [str(i) for i in range(600)], "dimensions": 4})
    assert [len(t.inputs) for t in asked.tasks if isinstance(t, Embed)] == [256, 256, 88]
    assert asked.inputs == 600 and asked.width == 256
    assert all(t.dimensions == 4 for t in asked.tasks if isinstance(t, Embed))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_embedding_refuses_and_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_embedding(body)
    assert caught.value.param == param


# --- anything ------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_KEYS = st.sampled_from(
    sorted(
        {"messages", "prompt", "input", "tools", "tool_choice", "response_format", "stop", "n"}
        | {"temperature", "logit_bias", "seed", "stream", "stream_options", "logprobs"}
        | {"top_logprobs", "max_tokens", "modalities", "dimensions", "chat_template_kwargs"}
    )
)


@given(st.dictionaries(_KEYS, _JSON, max_size=6))
def test_any_body_makes_a_task_or_an_error_of_ours(body: dict[str, Any]) -> None:
    for reader in (
        lambda b: read_chat(b, "m", ModelConfig()),
        lambda b: read_completion(b, ModelConfig()),
        read_embedding,
    ):
        try:
            tasks = reader({"messages": USER, "prompt": "p", "input": "i"} | body).tasks
        except UmlError:
            continue
        assert tasks and all(read(t.name, t.to_wire()) == t for t in tasks)
