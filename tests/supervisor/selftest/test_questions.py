from __future__ import annotations

import pytest

from uml.supervisor.selftest.questions import Question, is_right, questions, right_answer, said


def chat(*tokens: tuple[str, float, float]) -> dict:
    """An answer; each token with its logarithm of probability and the next likely one's."""
    content = [
        {"token": t, "logprob": a, "top_logprobs": [{"logprob": a}, {"logprob": b}]}
        for t, a, b in tokens
    ]
    text = "".join(t for t, _, _ in tokens)
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]}


def completion(*tokens: tuple[str, float, float]) -> dict:
    told = {
        "tokens": [t for t, _, _ in tokens],
        "top_logprobs": [{t: a, "other": b} for t, a, b in tokens],
    }
    return {"choices": [{"text": "".join(t for t, _, _ in tokens), "logprobs": told}]}


@pytest.mark.parametrize(("task", "make"), [("chat", chat), ("complete", completion)])
def test_right_answer_ends_before_the_first_token_that_was_not_clear(task: str, make) -> None:  # type: ignore[no-untyped-def]
    answer = make(
        ("Par", -0.1, -4.0), ("is", -0.2, -2.0), (" or", -0.70, -0.72), (" not", -0.1, -9)
    )
    assert right_answer(task, answer) == "Paris"
    assert is_right("Paris and so on", "Paris")
    assert not is_right("Par excellence", "Paris")


def test_answer_whose_first_token_is_a_toss_is_of_no_use() -> None:
    assert right_answer("chat", chat(("A", -0.6, -0.7), ("b", -0.1, -5.0))) == ""


def test_answer_without_chances_has_to_come_whole() -> None:
    answer = {"choices": [{"message": {"content": "ping word1 tok2 "}, "logprobs": None}]}
    assert right_answer("chat", answer) == "ping word1 tok2 "
    assert not is_right("ping word1 ", "ping word1 tok2 ")


def test_embedding_is_right_when_it_points_the_same_way() -> None:
    answer = {"data": [{"embedding": [1.0, 0.0]}]}
    right = right_answer("embed", answer)
    assert is_right([1.0, 1e-4], right)
    assert not is_right([0.9, 0.4], right)
    assert not is_right([1.0], right)
    assert said("embed", answer) == [1.0, 0.0]


def test_questions_fit_what_a_model_can_do() -> None:
    assert {q.task for q in questions("m", ("complete", "chat"), fake=False)} == {"chat"}
    assert {q.task for q in questions("m", ("embed",), fake=False)} == {"embed"}
    assert questions("m", ("speak",), fake=False) == []
    assert len(set(questions("m", ("complete",), fake=False))) >= 5


def test_bodies_are_greedy_and_short() -> None:
    body = Question("m", "chat", "hello").body(stream=True)
    assert body["temperature"] == 0 and body["stream"] and body["max_tokens"] <= 16
    assert Question("m", "embed", "hello").body() == {"model": "m", "input": "hello"}
    assert Question("m", "complete", "a").body(told_chances=True)["logprobs"] == 2
