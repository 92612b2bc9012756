"""A draft model beside a real one: what it guesses changes no answer, and it keeps nothing.

It guesses in every step here, whether it pays or not. One draft is the model itself, which is
always right; the other its first layers, which are wrong most of the time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.cut import cut
from tests.workers.llama.driver import Answer, WorkerProcess
from uml.protocol.tasks import Chat, Sampling

QUESTIONS = (
    "Write a short story about a fox.",
    "What is the capital of France?",
    "List ten animals.",
    "Explain what rain is.",
)


def chat(question: str, **said: Any) -> Chat:
    names = {field.name for field in dataclasses.fields(Sampling)}
    sampling = {"temperature": 0.0, "seed": 1} | {k: v for k, v in said.items() if k in names}
    rest = {"max_tokens": 32} | {k: v for k, v in said.items() if k not in names}
    messages = [{"role": "user", "content": question}]
    return Chat(messages=messages, sampling=Sampling(**sampling), **rest)


@pytest.fixture(scope="module")
def poor(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut(models_dir / CHAT_MODEL, tmp_path_factory.mktemp("draft") / "poor.gguf", 24)


@pytest.fixture(scope="module")
def plain(llama_python: str, models_dir: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(
        llama_python, models_dir / CHAT_MODEL, n_ctx=2048, slots=16, speculate=False
    )
    yield worker
    worker.close()


@pytest.fixture(scope="module", params=["itself", "poor"])
def drafted(
    request: pytest.FixtureRequest, llama_python: str, models_dir: Path, poor: Path
) -> Iterator[WorkerProcess]:
    model = models_dir / CHAT_MODEL
    draft = str(poor if request.param == "poor" else model)
    worker = WorkerProcess(
        llama_python,
        model,
        n_ctx=2048,
        slots=16,
        draft_files=[draft],
        draft_cells=768,
        speculate="always",
    )
    yield worker
    worker.close()


def stood(*answers: Answer) -> float:
    """The share of guesses that were right."""
    timings = [a.done.timings for a in answers if a.done]
    assert all(t.get("draft_n") for t in timings), "something was guessed"
    return sum(t["draft_n_accepted"] for t in timings) / sum(t["draft_n"] for t in timings)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.2},
    ],
    ids=["greedy", "drawn", "by-a-chain"],
)
def test_an_answer_is_the_same_with_and_without(
    plain: WorkerProcess, drafted: WorkerProcess, sampling: dict[str, Any]
) -> None:
    for question in QUESTIONS[:2]:
        task = chat(question, **sampling)
        assert drafted.run(task).text() == plain.run(task).text()


def test_answers_at_the_same_time_are_the_same_too(
    plain: WorkerProcess, drafted: WorkerProcess
) -> None:
    tasks = [chat(question) for question in QUESTIONS]
    alone = [plain.run(task).text() for task in tasks]
    answers = drafted.wait(*[drafted.ask(task) for task in tasks])
    stood(*answers)
    assert [answer.text() for answer in answers] == alone


def test_each_token_has_its_probability(plain: WorkerProcess, drafted: WorkerProcess) -> None:
    task = chat(QUESTIONS[1], top_logprobs=2, max_tokens=12)
    answer, same = drafted.run(task), plain.run(task)
    stood(answer)
    assert answer.logprobs() == same.logprobs(), "to the last bit"


def test_choices_of_one_request_are_guessed_for_each(
    plain: WorkerProcess, drafted: WorkerProcess
) -> None:
    task = chat(QUESTIONS[0], n=2, temperature=0.8)
    answer, same = drafted.run(task), plain.run(task)
    stood(answer)
    assert [answer.text(0), answer.text(1)] == [same.text(0), same.text(1)]


def test_a_form_is_kept_though_tokens_are_guessed(
    plain: WorkerProcess, drafted: WorkerProcess
) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}},
        "required": ["name", "legs"],
        "additionalProperties": False,
    }
    task = chat("Describe a dog as JSON.", json_schema=schema, max_tokens=200)
    answer = drafted.run(task)
    stood(answer)
    assert set(json.loads(answer.text())) == {"name", "legs"}
    assert answer.text() == plain.run(task).text()
    digits = chat("Count.", grammar='root ::= "1 2 3 4 " [5-9] " 6"')
    assert drafted.run(digits).text() == plain.run(digits).text()


def test_what_a_cancelled_answer_held_is_free_again(drafted: WorkerProcess) -> None:
    """All of these together have more tokens than the draft has cells."""
    expected = None
    for turn in range(4):
        asked = drafted.ask(chat(f"{turn} is next. " * 60, ignore_eos=True, max_tokens=400))
        drafted.until(lambda a=asked: len(drafted.answers[a].deltas) >= 4)  # type: ignore[misc]
        drafted.cancel(asked)
        done = drafted.wait(asked)[0].done
        assert done and done.finish == ["cancelled"]
        answer = drafted.run(chat(QUESTIONS[1], max_tokens=12))
        stood(answer)
        expected = expected or answer.text()
        assert answer.text() == expected


def test_more_answers_than_its_cells_hold_are_written_all_the_same(
    llama_python: str, models_dir: Path
) -> None:
    """The pool runs out as well: the youngest gives its cells back and goes on later."""
    model = models_dir / CHAT_MODEL
    worker = WorkerProcess(
        llama_python,
        model,
        n_ctx=512,
        slots=8,
        kv_cells=512,
        draft_files=[str(model)],
        draft_cells=256,
        speculate="always",
    )
    try:
        tasks = [chat(q, max_tokens=160, ignore_eos=True) for q in QUESTIONS]
        answers = worker.wait(*[worker.ask(t) for t in tasks])
        for answer in answers:
            assert answer.done and answer.done.usage["completion_tokens"] == 160
        again = worker.run(tasks[2])
        assert stood(again) > 0.9
    finally:
        worker.close()


def test_the_next_turn_is_guessed_from_what_the_draft_has_read(
    llama_python: str, models_dir: Path
) -> None:
    model = models_dir / CHAT_MODEL
    worker = WorkerProcess(
        llama_python, model, n_ctx=2048, slots=4, draft_files=[str(model)], speculate="always"
    )
    try:
        first = worker.run(chat(QUESTIONS[1]))
        assert stood(first) == 1.0
        messages = [
            {"role": "user", "content": QUESTIONS[1]},
            {"role": "assistant", "content": first.text()},
            {"role": "user", "content": "And of Spain?"},
        ]
        second = worker.run(
            Chat(messages=messages, max_tokens=24, sampling=Sampling(temperature=0))
        )
        assert stood(second) > 0.9
    finally:
        worker.close()
