"""Structured answers and tool calls through the official client, as its users write them."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import openai
import pydantic
import pytest

from tests.integration.serving import CHAT
from tests.integration.test_real_models import pytestmark as _real

pytestmark = _real


class Kind(StrEnum):
    city = "city"
    river = "river"


class Place(pydantic.BaseModel):
    """A place."""

    name: str = pydantic.Field(max_length=20)
    kind: Kind
    people: Annotated[int, pydantic.Field(ge=0, le=9999)] | None
    sights: list[Annotated[str, pydantic.Field(max_length=16)]] = pydantic.Field(max_length=2)


class Weather(pydantic.BaseModel):
    """The weather of a city now."""

    city: str = pydantic.Field(max_length=20)
    when: Kind


class Clock(pydantic.BaseModel):
    """The time of a zone."""

    zone: str = pydantic.Field(max_length=20)


ASK = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Tell me about Paris."}],
    "temperature": 0,
    "max_tokens": 200,
}
TOOLS = [
    openai.pydantic_function_tool(Weather, name="weather"),
    openai.pydantic_function_tool(Clock, name="clock"),
]
LENIENT = [
    {"type": "function", "function": {"name": t["function"]["name"], "parameters": schema}}
    for t, schema in zip(
        TOOLS, (Weather.model_json_schema(), Clock.model_json_schema()), strict=True
    )
]
NAMED = {"type": "function", "function": {"name": "clock"}}


def test_parse_gives_an_object_of_the_asked_class(official: Any) -> None:
    for parse in (official.chat.completions.parse, official.beta.chat.completions.parse):
        message = parse(response_format=Place, **ASK).choices[0].message
        assert isinstance(message.parsed, Place) and message.refusal is None


def test_streamed_answer_parses_as_it_ends(official: Any) -> None:
    with official.chat.completions.stream(response_format=Place, **ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] == "content.done"
    assert isinstance(final.choices[0].message.parsed, Place)


def test_answer_that_is_cut_is_said_to_be(official: Any) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        official.chat.completions.parse(response_format=Place, **ASK | {"max_tokens": 4})


def test_every_choice_obeys(official: Any) -> None:
    answer = official.chat.completions.parse(
        response_format=Place, n=3, seed=5, **ASK | {"temperature": 1}
    )
    assert [type(choice.message.parsed) for choice in answer.choices] == [Place] * 3


@pytest.mark.parametrize("tools", [TOOLS, LENIENT], ids=["strict", "lenient"])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_wanted_tool_is_called(official: Any, tools: list[Any], choice: Any) -> None:
    answer = official.chat.completions.create(tools=tools, tool_choice=choice, **ASK).choices[0]
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    for call in answer.message.tool_calls:
        _obeys(call.function.name, call.function.arguments)
    if choice is NAMED:
        assert [call.function.name for call in answer.message.tool_calls] == ["clock"]


def test_parse_reads_a_tools_arguments(official: Any) -> None:
    answer = official.chat.completions.parse(tools=TOOLS, tool_choice="required", **ASK)
    for call in answer.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, Weather | Clock)


def test_several_calls_are_made_only_where_wished(official: Any) -> None:
    many = ASK | {"messages": [{"role": "user", "content": "Weather in Rome and in Oslo?"}]}
    answer = official.chat.completions.create(
        tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **many
    )
    assert len(answer.choices[0].message.tool_calls) == 1
    answer = official.chat.completions.create(tools=TOOLS, tool_choice="required", **many)
    calls = answer.choices[0].message.tool_calls
    assert len({call.id for call in calls}) == len(calls) >= 1


def test_model_is_free_to_call_or_to_talk(official: Any) -> None:
    answer = official.chat.completions.create(tools=TOOLS, tool_choice="auto", **ASK).choices[0]
    if answer.message.tool_calls:
        assert answer.finish_reason == "tool_calls"
        for call in answer.message.tool_calls:
            _obeys(call.function.name, call.function.arguments)
    else:
        assert answer.message.content and answer.finish_reason in ("stop", "length")
    talk = official.chat.completions.create(tools=TOOLS, tool_choice="none", **ASK).choices[0]
    assert talk.message.content and not talk.message.tool_calls


def test_streamed_calls_come_in_pieces_that_join(official: Any) -> None:
    pieces: dict[int, list[Any]] = {}
    reasons = []
    for chunk in official.chat.completions.create(
        tools=TOOLS, tool_choice="required", stream=True, **ASK
    ):
        reasons += [chunk.choices[0].finish_reason]
        for piece in chunk.choices[0].delta.tool_calls or ():
            pieces.setdefault(piece.index, []).append(piece)
    assert reasons[-1] == "tool_calls" and not any(reasons[:-1])
    assert list(pieces) == list(range(len(pieces))), "one call after the other, from the first"
    assert len({found[0].id for found in pieces.values()}) == len(pieces) >= 1
    for first, *rest in pieces.values():
        assert first.id and first.type == "function"
        assert not any(piece.id or piece.function.name for piece in rest)
        assert len(rest) > 1, "arguments come as they are written"
        _obeys(
            first.function.name,
            "".join(piece.function.arguments or "" for piece in (first, *rest)),
        )


def test_answer_of_a_tool_goes_on(official: Any) -> None:
    called = official.chat.completions.create(tools=TOOLS, tool_choice=NAMED, **ASK)
    message = called.choices[0].message
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is noon."}
    turns = [*ASK["messages"], message.model_dump(exclude_none=True), told]
    answer = official.chat.completions.create(
        tools=TOOLS, tool_choice="none", **ASK | {"messages": turns, "max_tokens": 20}
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "'not'.*/properties/a"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "string", "format": "iri"}, "'format'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"$ref": "https://example.org/a.json"}, r"'\$ref'"),
    ],
)
def test_keyword_outside_the_subset_is_named(
    official: Any, schema: dict[str, Any], named: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=named):
            official.chat.completions.create(response_format=form, stream=stream, **ASK)


def _obeys(name: str, arguments: str) -> None:
    {"weather": Weather, "clock": Clock}[name].model_validate(json.loads(arguments))
