"""Embedding models, base models with sliding windows, and files that do not load."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import Answer, WorkerProcess
from uml.protocol.errors import BadRequest, ContextLengthExceeded, LoadFailed, TaskNotSupported
from uml.protocol.tasks import Chat, Complete, Embed, Sampling

pytestmark = pytest.mark.llama


def vectors(answer: Answer) -> list[tuple[float, ...]]:
    found = {index: delta["vector"] for index, delta in answer.deltas}
    return [struct.unpack(f"<{len(v) // 4}f", v) for _, v in sorted(found.items())]


def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def embed_worker(llama_python: str, models_dir: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(llama_python, models_dir / "all-minilm-l6-v2.Q8_0.gguf")
    yield worker
    worker.close()


def test_embeddings_put_alike_texts_close(embed_worker: WorkerProcess) -> None:
    answer = embed_worker.run(
        Embed(inputs=["A cat sits on the mat.", "A kitten is on the rug.", "Stocks fell today."])
    )
    cat, kitten, stocks = vectors(answer)
    assert len(cat) == 384
    assert cosine(cat, cat) == pytest.approx(1, abs=1e-5)
    assert cosine(cat, kitten) > cosine(cat, stocks) + 0.3
    assert answer.done is not None
    assert answer.done.usage["prompt_tokens"] == 24


def test_embeddings_together_are_embeddings_alone(embed_worker: WorkerProcess) -> None:
    texts = [f"Sentence number {i} about {'tea' * (i % 5)}" for i in range(100)]
    together = vectors(embed_worker.run(Embed(inputs=texts)))
    assert len(together) == 100
    for i in (0, 42, 99):
        (alone,) = vectors(embed_worker.run(Embed(inputs=[texts[i]])))
        assert cosine(alone, together[i]) > 0.999


def test_embeddings_can_be_cut_shorter(embed_worker: WorkerProcess) -> None:
    (short,) = vectors(embed_worker.run(Embed(inputs=["tea"], dimensions=64)))
    assert len(short) == 64
    assert cosine(short, short) == pytest.approx(1, abs=1e-5)


def test_embeddings_of_token_ids_are_those_of_the_text(embed_worker: WorkerProcess) -> None:
    # [CLS] tea [SEP] in BERT's vocabulary.
    a, b = vectors(embed_worker.run(Embed(inputs=["tea", [101, 5572, 102]])))
    assert cosine(a, b) > 0.9999


def test_embedding_model_refuses_what_it_cannot(embed_worker: WorkerProcess) -> None:
    with pytest.raises(ContextLengthExceeded, match="context is 512"):
        embed_worker.run(Embed(inputs=["word " * 600]))
    with pytest.raises(BadRequest):
        embed_worker.run(Embed(inputs=[]))
    with pytest.raises(BadRequest):
        embed_worker.run(Embed(inputs=["x"], dimensions=1000))
    with pytest.raises(TaskNotSupported):
        embed_worker.run(Chat(messages=[{"role": "user", "content": "x"}]))
    with pytest.raises(TaskNotSupported):
        embed_worker.run(Complete(prompt="x"))


@pytest.mark.parametrize("swa_full", [True, False])
def test_base_model_with_sliding_windows_completes_and_does_not_chat(
    llama_python: str, models_dir: Path, swa_full: bool
) -> None:
    worker = WorkerProcess(
        llama_python, models_dir / "gemma-3-270m.Q4_K_M.gguf", n_ctx=512, slots=4, swa_full=swa_full
    )
    try:
        with pytest.raises(TaskNotSupported, match="/v1/completions"):
            worker.run(Chat(messages=[{"role": "user", "content": "x"}]))
        task = Complete(
            prompt="Berlin is the capital of Germany. Paris is the capital of",
            max_tokens=2,
            sampling=Sampling(temperature=0),
        )
        names = [worker.ask(task) for _ in range(4)]
        assert all("France" in answer.text() for answer in worker.wait(*names))
    finally:
        worker.close()


def test_truncated_file_fails_with_the_librarys_reason(
    llama_python: str, models_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((models_dir / CHAT_MODEL).read_bytes()[: 40 << 20])
    with pytest.raises(LoadFailed, match="within the file bounds"):
        WorkerProcess(llama_python, broken, expected=[broken], arch="llama", vocab_size=49152)
