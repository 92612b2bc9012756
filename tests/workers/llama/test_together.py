"""Many requests at once: batching, sharing, cancelling, running out of room."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import WorkerProcess
from uml.protocol.tasks import Chat, Complete, Sampling

pytestmark = pytest.mark.llama

GREEDY = Sampling(temperature=0)
TOPICS = (
    *("the sea", "a dog", "winter", "Rome", "music", "bread", "the moon", "trains"),
    *("chess", "gold", "rain", "a king", "tea", "maps", "glass", "horses"),
)
TALE = "".join(f", {topic} or {number}" for number, topic in enumerate(TOPICS[:9]))
LONG_SYSTEM = "You are a careful assistant. " + " ".join(
    f"Rule {i}: answer about {topic} briefly." for i, topic in enumerate(TOPICS)
)


def about(topic: str, **more: Any) -> Complete:
    values = {"sampling": GREEDY, "max_tokens": 12, "ignore_eos": True, **more}
    return Complete(prompt=f"A short text about {topic}:", **values)


def asked(question: str, *, system: str = LONG_SYSTEM, **more: Any) -> Chat:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return Chat(messages=messages, **{"sampling": GREEDY, "max_tokens": 4, **more})


def test_answers_together_are_answers_alone(chat_worker: WorkerProcess) -> None:
    tasks = [about(topic, top_logprobs=2) for topic in TOPICS]
    alone = [chat_worker.run(task).logprobs() for task in tasks]
    together = [a.logprobs() for a in chat_worker.wait(*[chat_worker.ask(t) for t in tasks])]
    assert together == alone, "to the last bit"


def test_requests_join_while_others_run(chat_worker: WorkerProcess) -> None:
    first = chat_worker.ask(about("the sea", max_tokens=300))
    chat_worker.until(lambda: chat_worker.answers[first].deltas)
    second = chat_worker.run(about("a dog"))
    assert second.done is not None
    assert not chat_worker.answers[first].ended
    chat_worker.cancel(first)
    chat_worker.wait(first)


def test_cancel_frees_the_slot_at_once(chat_worker: WorkerProcess) -> None:
    names = [chat_worker.ask(about(topic, max_tokens=1000)) for topic in TOPICS * 2]
    chat_worker.until(lambda: chat_worker.answers[names[0]].deltas)
    for name in names:
        chat_worker.cancel(name)
    answers = chat_worker.wait(*names)
    assert {tuple(a.done.finish) for a in answers if a.done} == {("cancelled",)}
    chat_worker.idle()
    assert chat_worker.run(about("Rome")).text()


def test_the_end_of_a_cancelled_answer_is_told_before_the_next_step(
    chat_worker: WorkerProcess,
) -> None:
    between = []
    stays = chat_worker.ask(about("winter", max_tokens=900))
    for topic in TOPICS[:5]:
        leaves = chat_worker.ask(about(topic, max_tokens=900))
        chat_worker.until(lambda name=leaves: chat_worker.answers[name].deltas)
        said = len(chat_worker.answers[stays].deltas)
        chat_worker.until(lambda most=said + 3: len(chat_worker.answers[stays].deltas) > most)
        said = len(chat_worker.answers[stays].deltas)
        chat_worker.cancel(leaves)
        chat_worker.wait(leaves)
        between.append(len(chat_worker.answers[stays].deltas) - said)
    chat_worker.cancel(stays)
    chat_worker.wait(stays)
    assert min(between) <= 1, "of the step that ran"


def test_a_long_prompt_does_not_stall_a_running_answer(chat_worker: WorkerProcess) -> None:
    running = chat_worker.ask(about("winter", max_tokens=600))
    chat_worker.until(lambda: chat_worker.answers[running].deltas)
    answer = chat_worker.answers[running]
    before = len(answer.deltas)
    late = chat_worker.run(Complete(prompt=[504, 3575] * 450, max_tokens=1, sampling=GREEDY))
    assert late.first_at is not None
    # 900 tokens in one piece would have let it through once or twice.
    assert len(answer.deltas) - before >= 5
    chat_worker.cancel(running)
    chat_worker.wait(running)


def test_a_reader_that_takes_nothing_holds_up_only_itself(chat_worker: WorkerProcess) -> None:
    slow = chat_worker.ask(about("music", max_tokens=40), window=16)
    other = chat_worker.run(about("tea", max_tokens=40))
    assert other.done is not None
    held = chat_worker.answers[slow]
    assert not held.ended
    assert len(held.text()) < 60
    chat_worker.credit(slow, 1 << 20)
    chat_worker.wait(slow)
    assert held.done is not None
    assert held.done.usage["completion_tokens"] == 40


def test_next_turn_computes_only_what_is_new(chat_worker: WorkerProcess) -> None:
    messages = [{"role": "user", "content": "Name one colour. " + "Please. " * 40}]
    first = chat_worker.run(Chat(messages=messages, max_tokens=8, sampling=GREEDY))
    assert first.done is not None
    messages += [
        {"role": "assistant", "content": first.text()},
        {"role": "user", "content": "And another?"},
    ]
    second = chat_worker.run(Chat(messages=messages, max_tokens=8, sampling=GREEDY))
    assert second.done is not None
    assert second.done.usage["cached_tokens"] >= first.done.usage["prompt_tokens"]
    assert second.done.usage["prompt_tokens"] - second.done.usage["cached_tokens"] < 30


def test_reuse_does_not_change_the_answer(chat_worker: WorkerProcess) -> None:
    task = asked("What is bread?", max_tokens=10, system="Reuse. " * 60, seeded=True)
    fresh, again = chat_worker.run(task), chat_worker.run(task)
    assert again.done is not None
    assert again.done.usage["cached_tokens"] == again.done.usage["prompt_tokens"] - 1
    assert again.text() == fresh.text()


def test_chats_that_begin_alike_compute_the_beginning_once(chat_worker: WorkerProcess) -> None:
    names = [chat_worker.ask(asked(f"Tell me about {topic}.")) for topic in TOPICS[:8]]
    usages = [a.done.usage for a in chat_worker.wait(*names) if a.done]
    shared = [u["cached_tokens"] for u in usages]
    assert shared[0] < 20
    assert all(u["prompt_tokens"] - u["cached_tokens"] < 40 for u in usages[1:])
    assert all(u["prompt_tokens"] > 150 for u in usages)


@pytest.fixture(scope="module")
def tiny_worker(llama_python: str, models_dir: Path) -> Iterator[WorkerProcess]:
    """Six slots, but a pool that holds one context."""
    worker = WorkerProcess(
        llama_python, models_dir / CHAT_MODEL, n_ctx=256, slots=6, kv_cells=256, n_batch=64
    )
    yield worker
    worker.close()


def test_when_the_pool_runs_out_everybody_still_ends(tiny_worker: WorkerProcess) -> None:
    """Forced to say the same text, a model finds it as likely as it did undisturbed, unless it
    lost or mixed up what came before."""
    tasks = [
        about(topic, max_tokens=None, top_logprobs=0, grammar=f'root ::= "{topic}{TALE}"')
        for topic in TOPICS[:6]
    ]
    alone = [tiny_worker.run(task) for task in tasks]
    together = tiny_worker.wait(*[tiny_worker.ask(task) for task in tasks])
    compared = 0
    for topic, a, b in zip(TOPICS, alone, together, strict=False):
        assert b.text() == topic + TALE
        for one, other in zip(a.logprobs(), b.logprobs(), strict=False):
            if one["token"] != other["token"]:
                break  # the same text in other tokens from here on
            compared += 1
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1.5)
    assert compared > 150
    # The oldest is never made to wait: between two of its tokens nobody gets more than one, or
    # two where a token was held back for a character's other half.
    oldest = together[0].times
    for other in together[1:]:
        between = Counter(bisect_left(oldest, at) for at in other.times if at <= oldest[-1])
        del between[0]
        assert max(between.values(), default=0) <= 2


def test_a_context_as_large_as_the_pool_fits(tiny_worker: WorkerProcess) -> None:
    answer = tiny_worker.run(
        Complete(prompt=[504] * 200, max_tokens=None, ignore_eos=True, sampling=GREEDY)
    )
    assert answer.done is not None
    assert answer.done.finish == ["length"]
    assert answer.done.usage["completion_tokens"] == 56


def test_parked_conversations_come_back(tiny_worker: WorkerProcess) -> None:
    """More conversations than the pool holds: the rest waits in RAM."""
    tasks = [
        Complete(prompt=[1000 + i] * 90 + [504], max_tokens=2, sampling=GREEDY) for i in range(5)
    ]
    first = [tiny_worker.run(task).text() for task in tasks]
    again = [tiny_worker.run(task) for task in tasks]
    assert [a.text() for a in again] == first
    assert all(a.done and a.done.usage["cached_tokens"] == 90 for a in again)


def test_cores_given_or_taken_count_at_once(llama_python: str, models_dir: Path) -> None:
    worker = WorkerProcess(llama_python, models_dir / CHAT_MODEL, n_ctx=512, slots=2, threads=1)
    try:
        worker.run(about("the sea"))
        one = worker.cpu()
        worker.threads(2)
        worker.run(about("the sea", max_tokens=60))
        two = worker.cpu()
        helper = max(two.keys() - one.keys(), key=lambda thread: two[thread])
        assert two[helper] > 0
        worker.threads(1)
        worker.run(about("a dog", max_tokens=60))
        assert worker.cpu().get(helper, 0.0) - two[helper] <= 0.02, "it computes no more"
    finally:
        worker.close()
