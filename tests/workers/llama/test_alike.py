"""An answer is the same, bit by bit, whoever else is there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import WorkerProcess
from uml.protocol.tasks import Chat, Complete, Sampling, Task

pytestmark = pytest.mark.llama

GREEDY = Sampling(temperature=0)
SYSTEM = "You are a careful assistant. " + "Answer briefly and kindly. " * 30


def text(prompt: str | list[int], **more: object) -> Complete:
    return Complete(
        prompt=prompt, max_tokens=32, ignore_eos=True, sampling=GREEDY, top_logprobs=1, **more
    )  # type: ignore[arg-type]


def chat(question: str) -> Chat:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return Chat(messages=messages, max_tokens=32, ignore_eos=True, sampling=GREEDY, top_logprobs=1)


#: Some alike, so that cells are shared; some longer than a column would be if all had one.
TASKS: list[Task] = [
    *(text(f"A story about {topic}. Once upon a time") for topic in ("a sailor", "tea", "Rome")),
    *(text([1000 + i * k % 5000 for i in range(60 + 350 * k)]) for k in (1, 2, 4)),
    *(chat(f"What about {topic}?") for topic in ("the moon", "winter")),
    text("The answer is", n=3),
]


@pytest.fixture(scope="module", params=[2, 1], ids=["two threads", "one thread"])
def worker(
    llama_python: str, models_dir: Path, request: pytest.FixtureRequest
) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(
        llama_python,
        models_dir / CHAT_MODEL,
        threads=request.param,
        n_ctx=2048,
        kv_cells=8192,
        slots=16,
    )
    yield worker
    worker.close()


def test_answers_among_others_are_those_alone_to_the_last_bit(worker: WorkerProcess) -> None:
    """Who comes and leaves, and where its cells lie, makes no difference: neither does what is
    known already of a prompt, nor into which pieces it is cut."""
    alone = [worker.run(task).logprobs() for task in TASKS]
    assert all(alone)
    rng = random.Random(4)
    for _ in range(2):
        order = [*range(len(TASKS)), *rng.choices(range(len(TASKS)), k=4)]
        rng.shuffle(order)
        first = [worker.ask(text([rng.randrange(1000, 9000)] * n)) for n in (1500, 1400, 90)]
        worker.until(lambda first=first: any(worker.answers[n].deltas for n in first))  # type: ignore[misc]
        asked = {worker.ask(TASKS[i]): i for i in order}
        worker.until(lambda asked=asked: any(worker.answers[n].deltas for n in asked))  # type: ignore[misc]
        for name in first:  # there are large gaps before the others now
            worker.cancel(name)
        for name, answer in zip(asked, worker.wait(*asked), strict=True):
            assert answer.logprobs() == alone[asked[name]], TASKS[asked[name]]
