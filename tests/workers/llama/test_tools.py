"""Tool calls of a real model, forced by a grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.workers.llama.driver import Answer, WorkerProcess
from tests.workers.llama.test_replies import TIME, WEATHER
from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat, Sampling

pytestmark = pytest.mark.llama

MESSAGES = [{"role": "user", "content": "What is the weather in Rome?"}]


def ask(worker: WorkerProcess, choice: Any, tools: list[Any]) -> Answer:
    return worker.run(
        Chat(
            messages=MESSAGES,
            tools=tools,
            tool_choice=choice,
            max_tokens=60,
            sampling=Sampling(temperature=0),
        )
    )


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_required_tool_is_called_with_arguments_of_its_schema(
    chat_worker: WorkerProcess, choice: Any
) -> None:
    answer = ask(chat_worker, choice, [WEATHER])
    assert answer.done is not None
    assert answer.done.finish == ["tool_calls"]
    assert answer.text() == ""
    called = answer.calls()
    assert len(called) == 1 or choice == "required"
    for name, arguments in called:
        assert name == "weather"
        assert isinstance(json.loads(arguments)["city"], str)


def test_named_tool_is_the_one_called(chat_worker: WorkerProcess) -> None:
    answer = ask(chat_worker, {"function": {"name": "time"}}, [WEATHER, TIME])
    assert [name for name, _ in answer.calls()] == ["time"]


def test_unknown_tool_is_refused(chat_worker: WorkerProcess) -> None:
    with pytest.raises(BadRequest) as e:
        ask(chat_worker, {"function": {"name": "x"}}, [WEATHER])
    assert e.value.param == "tool_choice"


def test_tools_that_may_be_used_leave_the_model_free(chat_worker: WorkerProcess) -> None:
    answer = ask(chat_worker, "none", [WEATHER])
    assert answer.text()
    assert answer.done is not None
    assert answer.done.finish in (["stop"], ["length"])
