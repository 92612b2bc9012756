"""The vocabulary that was read apart from its weights is the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import WorkerProcess
from uml.protocol.tasks import Complete, Embed, Sampling, Task

BASE_MODEL, EMBED_MODEL = "gemma-3-270m.Q4_K_M.gguf", "all-minilm-l6-v2.Q8_0.gguf"
#: Without these the worker has to load the model as a whole.
WHOLE: dict[str, Any] = {"arch": None, "vocab_size": None}
ASKED = "A naïve café — 123 + 7, 日本語, <|im_start|>"

pytestmark = pytest.mark.llama


def said(worker: WorkerProcess, task: Task) -> tuple[list[tuple[int, Any]], Any, Any]:
    answer = worker.run(task)
    assert answer.done is not None
    return answer.deltas, answer.done.finish, answer.done.usage


@pytest.mark.parametrize("name", [CHAT_MODEL, BASE_MODEL])
def test_a_model_says_the_same_with_its_vocabulary_read_apart(
    llama_python: str, models_dir: Path, name: str
) -> None:
    task = Complete(
        prompt=ASKED, max_tokens=24, top_logprobs=3, sampling=Sampling(temperature=0, seed=1)
    )
    found = []
    for told in (WHOLE, {}):
        worker = WorkerProcess(llama_python, models_dir / name, n_ctx=512, slots=2, **told)
        try:
            found.append((said(worker, task), worker.ready and worker.ready.facts["n_vocab"]))
        finally:
            worker.close()
    assert found[0] == found[1]


def test_an_embedding_model_says_the_same_with_its_vocabulary_read_apart(
    llama_python: str, models_dir: Path
) -> None:
    found = []
    for told in (WHOLE, {}):
        worker = WorkerProcess(llama_python, models_dir / EMBED_MODEL, **told)
        try:
            found.append(said(worker, Embed(inputs=[ASKED, "tea"])))
        finally:
            worker.close()
    assert found[0] == found[1]


def test_who_was_told_to_expect_one_model_may_load_another(
    llama_python: str, models_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((models_dir / CHAT_MODEL).read_bytes()[:4096])
    expected = [models_dir / BASE_MODEL, broken, tmp_path / "gone.gguf", models_dir / CHAT_MODEL]
    for last in (3, 4):
        worker = WorkerProcess(
            llama_python, models_dir / CHAT_MODEL, expected=expected[:last], n_ctx=512, slots=2
        )
        try:
            task = Complete(prompt="The capital of France is", max_tokens=4, ignore_eos=True)
            answer = worker.run(task)
            assert answer.done is not None and answer.done.usage["completion_tokens"] == 4
        finally:
            worker.close()
