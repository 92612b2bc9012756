"""Answers of a real model through a real worker."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.workers.llama.driver import WorkerProcess
from uml.protocol.errors import BadRequest, ContextLengthExceeded, TaskNotSupported, UmlError
from uml.protocol.tasks import Chat, Complete, Embed, Sampling

pytestmark = pytest.mark.llama

GREEDY = Sampling(temperature=0)


def chat(question: str, *, system: str = "You are a helpful assistant.", **more: Any) -> Chat:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return Chat(messages=messages, **{"sampling": GREEDY, "max_tokens": 16, **more})


def complete(prompt: Any, **more: Any) -> Complete:
    return Complete(prompt=prompt, **{"sampling": GREEDY, "max_tokens": 8, **more})


def test_ready_comes_after_a_decoded_token_and_says_what_the_model_is(
    chat_worker: WorkerProcess,
) -> None:
    ready, hello = chat_worker.ready, chat_worker.hello
    assert ready is not None
    assert hello is not None
    assert "llama-cpp-python" in hello.versions
    facts = ready.facts
    assert (facts["type"], facts["arch"], facts["n_ctx"]) == ("llm", "llama", 2048)
    assert facts["chat_template"] is True
    assert facts["kv_bytes"] == facts["kv_cells"] * 30 * 2 * 192 * 2  # layers, K and V, width, f16
    assert ready.memory["mapped"] == pytest.approx(facts["weights_bytes"], rel=0.01)
    assert ready.memory["ram"] + ready.memory["unused"] >= facts["kv_bytes"]
    stages = [p.stage for p in chat_worker.progress]
    assert list(dict.fromkeys(stages)) == ["weights", "context", "warm-up"]


def test_chat_knows_the_capital_of_france(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(chat("What is the capital of France?"))
    assert "Paris" in answer.text()
    assert answer.done is not None
    assert answer.done.finish == ["stop"]
    assert answer.done.usage["prompt_tokens"] == 27
    assert answer.done.usage["completion_tokens"] == 7
    assert set(answer.done.timings) == {"queue", "prompt", "generate"}


def test_complete_goes_on_from_text_or_tokens_and_echoes(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(complete("The capital of France is", echo=True))
    assert answer.text().startswith("The capital of France is")
    assert "Paris" in answer.text()
    # "The capital of France is" in SmolLM2's vocabulary.
    same = chat_worker.run(complete([504, 3575, 282, 4649, 314]))
    assert "The capital of France is" + same.text() == answer.text()


def test_same_seed_gives_the_same_answer_and_another_another(chat_worker: WorkerProcess) -> None:
    def text(seed: int) -> str:
        sampling = Sampling(temperature=1, top_p=0.95, top_k=50, min_p=0.01, seed=seed)
        return chat_worker.run(complete("Once upon a time", sampling=sampling)).text()

    assert text(42) == text(42)
    assert len({text(1), text(2), text(3)}) > 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1, mirostat=1),
        Sampling(seed=1, mirostat=2),
        Sampling(seed=1, typical_p=0.8, top_n_sigma=1.5, dynatemp_range=0.3),
        Sampling(seed=1, xtc_probability=0.5, repeat_penalty=1.2, frequency_penalty=0.5),
        Sampling(seed=1, dry_multiplier=0.8, presence_penalty=0.5, penalty_last_n=-1),
        Sampling(temperature=0, repeat_penalty=1.3),
    ],
)
def test_every_sampler_gives_a_repeatable_answer(
    chat_worker: WorkerProcess, sampling: Sampling
) -> None:
    task = complete("A list of colours: red, red, red,", sampling=sampling, max_tokens=6)
    assert chat_worker.run(task).text() == chat_worker.run(task).text() != ""


def test_penalties_change_what_is_said(chat_worker: WorkerProcess) -> None:
    prompt = "red red red red red red red red"
    plain = chat_worker.run(complete(prompt)).text()
    punished = chat_worker.run(
        complete(prompt, sampling=Sampling(temperature=0, repeat_penalty=1.8))
    ).text()
    assert "red" in plain
    assert "red" not in punished


def test_logit_bias_forces_and_forbids(chat_worker: WorkerProcess) -> None:
    plain = chat_worker.run(complete("The capital of France is", max_tokens=1, top_logprobs=0))
    assert plain.text() == " Paris"
    paris = str(7042)
    banned = Sampling(temperature=0, logit_bias={paris: -100.0})
    text = chat_worker.run(complete("The capital of France is", sampling=banned)).text()
    assert "Paris" not in text.split()
    forced = Sampling(temperature=0, logit_bias={paris: 100.0})
    text = chat_worker.run(complete("Two plus two is", sampling=forced, max_tokens=3)).text()
    assert text == " Paris Paris Paris"


def test_stop_string_ends_the_answer_and_is_not_in_it(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(chat("What is the capital of France?", stop=["ance is P", "zzz"]))
    assert answer.text() == "The capital of Fr"
    assert answer.done is not None
    assert answer.done.finish == ["stop"]


def test_logprobs_are_those_of_the_model_and_cover_the_text(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(complete("The capital of France is", max_tokens=5, top_logprobs=20))
    entries = answer.logprobs()
    assert len(entries) == 5
    assert b"".join(bytes(e["bytes"]) for e in entries).decode() == answer.text()
    for entry in entries:
        assert len(entry["top"]) == 20
        assert entry["top"][0]["token"] == entry["token"]
        assert entry["top"][0]["logprob"] == pytest.approx(entry["logprob"])
        values = [t["logprob"] for t in entry["top"]]
        assert values == sorted(values, reverse=True)
        assert 0.3 < sum(map(math.exp, values)) <= 1.0001


def test_logprobs_are_not_computed_for_who_does_not_ask(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(complete("The capital of France is"))
    assert all(isinstance(delta, str) for _, delta in answer.deltas)


def test_n_choices_share_one_prompt(chat_worker: WorkerProcess) -> None:
    sampling = Sampling(temperature=1.2, seed=7)
    answer = chat_worker.run(chat("Tell me a story.", n=3, sampling=sampling, max_tokens=12))
    assert answer.done is not None
    assert len(answer.done.finish) == 3
    assert len({answer.text(i) for i in range(3)}) > 1
    assert answer.done.usage["prompt_tokens"] < 40
    assert answer.done.usage["completion_tokens"] <= 36


def test_all_choices_of_a_step_leave_in_one_frame(chat_worker: WorkerProcess) -> None:
    chat_worker.frames.clear()
    chat_worker.run(complete("One two three", n=4, ignore_eos=True, max_tokens=10))
    assert chat_worker.frames[4] >= 8


def test_max_tokens_zero_computes_nothing(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(complete("Hello", max_tokens=0, echo=True))
    assert answer.text() == "Hello"
    assert answer.done is not None
    assert answer.done.finish == ["length"]


def test_grammar_decides_the_answer_even_across_bytes(chat_worker: WorkerProcess) -> None:
    answer = chat_worker.run(chat("Say hi", grammar='root ::= "h\u00e9llo \U0001f600\u6f22!"'))
    assert answer.text() == "h\u00e9llo \U0001f600\u6f22!"
    assert answer.done is not None
    assert answer.done.finish == ["stop"]


def test_grammar_works_with_sampling(chat_worker: WorkerProcess) -> None:
    task = chat("Yes or no?", grammar='root ::= "yes" | "no"', sampling=Sampling(seed=3))
    assert chat_worker.run(task).text() in ("yes", "no")


def test_json_schema_makes_json_of_that_shape(chat_worker: WorkerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    value = json.loads(chat_worker.run(chat("A city", json_schema=schema, max_tokens=60)).text())
    assert set(value) == {"city", "big"}
    assert isinstance(value["big"], bool)


@pytest.mark.parametrize(
    ("task", "error", "param"),
    [
        (chat("x", grammar="root ::= ("), BadRequest, "grammar"),
        (chat("x", grammar="nothing ::= [a]"), BadRequest, "grammar"),
        (chat("x", json_schema={"type": "no such type"}), BadRequest, "json_schema"),
        (Chat(messages=[]), BadRequest, "messages"),
        (complete([1, 99999999]), BadRequest, "prompt"),
        (complete([]), BadRequest, "prompt"),
        (chat("x", n=0), BadRequest, "n"),
        (complete("x", sampling=Sampling(logit_bias={"x": 1.0})), BadRequest, "logit_bias"),
        (complete("x", sampling=Sampling(repeat_penalty=0.0)), BadRequest, "repeat_penalty"),
        (complete("x", sampling=Sampling(top_p=math.nan)), BadRequest, "top_p"),
        (complete([504] * 2048), ContextLengthExceeded, "prompt"),
        (chat("word " * 3000), ContextLengthExceeded, "messages"),
        (Embed(inputs=["x"]), TaskNotSupported, None),
    ],
)
def test_nonsense_is_refused_and_the_worker_goes_on(
    chat_worker: WorkerProcess, task: Any, error: type[UmlError], param: str | None
) -> None:
    with pytest.raises(error) as e:
        chat_worker.run(task)
    assert e.value.param == param
    assert chat_worker.run(complete("One", max_tokens=1)).text()


def test_context_error_says_both_numbers(chat_worker: WorkerProcess) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"3000 tokens, the context is 2048"):
        chat_worker.run(complete([504] * 3000))
