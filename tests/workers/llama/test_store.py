"""Conversations outlive the worker that had them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import WorkerProcess
from uml.protocol.tasks import Chat, Sampling

pytestmark = pytest.mark.llama

GREEDY = Sampling(temperature=0)
SYSTEM = {"role": "system", "content": "You are a helpful guide to old harbours. " * 8}


def ask(worker: WorkerProcess, messages: list[dict]) -> tuple[str, dict[str, int]]:
    answer = worker.run(Chat(messages=messages, max_tokens=12, sampling=GREEDY))
    assert answer.done is not None
    return answer.text(), answer.done.usage


def likely(worker: WorkerProcess, messages: list[dict]) -> tuple[dict[str, float], dict[str, int]]:
    """What the model holds for the likeliest next tokens, as log probabilities, and the usage."""
    answer = worker.run(Chat(messages=messages, max_tokens=1, sampling=GREEDY, top_logprobs=5))
    assert answer.done is not None
    (entry,) = answer.logprobs()
    return {top["token"]: top["logprob"] for top in entry["top"]}, answer.done.usage


@pytest.fixture
def start(llama_python: str, models_dir: Path, tmp_path: Path):
    """Workers that share a folder; each kills the one before."""
    running: list[WorkerProcess] = []

    def one(**options: object) -> WorkerProcess:
        while running:
            running.pop().close()
        options = {"n_ctx": 1024, "slots": 4, "conversations_dir": str(tmp_path / "kv"), **options}
        running.append(WorkerProcess(llama_python, models_dir / CHAT_MODEL, **options))
        return running[0]

    yield one
    while running:
        running.pop().close()


def test_a_killed_workers_conversation_goes_on_warm(start) -> None:
    turns = [SYSTEM, {"role": "user", "content": "Name one."}]
    text, before = ask(start(), turns)
    turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "Another?"}]
    warm, usage = likely(start(), turns)
    assert usage["cached_tokens"] >= before["prompt_tokens"]
    cold, usage = likely(start(conversations_dir=None), turns)
    assert usage["cached_tokens"] == 0
    assert warm == cold, "to the last bit"


def test_a_conversation_goes_on_warm_however_the_cells_are_divided(start) -> None:
    turns = [SYSTEM, {"role": "user", "content": "Name one."}]
    divided = {"n_ctx": 2048, "kv_cells": 4096}
    text, before = ask(start(**divided), turns)
    turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "Another?"}]
    warm, usage = likely(start(**divided, kv_unified=True), turns)
    assert usage["cached_tokens"] >= before["prompt_tokens"]
    again, usage = likely(start(**divided), turns)
    assert usage["cached_tokens"] >= before["prompt_tokens"]
    assert warm == again, "to the last bit"


def test_of_a_conversation_only_its_last_turn_is_kept(start, tmp_path: Path) -> None:
    worker, turns = start(), [SYSTEM, {"role": "user", "content": "Name one."}]
    for question in ("Another?", "And one more?", "The last?"):
        text, _ = ask(worker, turns)
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]
    files = list((tmp_path / "kv").glob("*/*"))
    assert [f.suffix for f in files] == [".kv"]
    assert files[0].stat().st_mode & 0o077 == 0


def test_another_cache_type_does_not_see_it(start) -> None:
    turns = [SYSTEM, {"role": "user", "content": "Name one."}]
    ask(start(), turns)
    _, usage = ask(start(cache_type_k="q8_0"), turns)
    assert usage["cached_tokens"] == 0


@pytest.mark.parametrize("spoil", ["cut", "empty", "garbage", "half"])
def test_a_file_that_is_not_whole_is_ignored_and_deleted(start, tmp_path: Path, spoil: str) -> None:
    turns = [SYSTEM, {"role": "user", "content": "Name one."}]
    ask(start(), turns)
    (path,) = (tmp_path / "kv").glob("*/*.kv")
    data = path.read_bytes()
    if spoil == "half":  # a worker killed while it wrote
        path = path.rename(path.with_name("1-1.new"))
    else:
        path.write_bytes({"cut": data[:-1], "empty": b"", "garbage": b"\xff" * 4096}[spoil])
    worker = start()
    assert not path.exists()
    _, usage = ask(worker, turns)
    assert usage["cached_tokens"] == 0


def test_no_more_than_the_limit_stays_on_disk(start, tmp_path: Path) -> None:
    worker = start(prefix_cache_bytes=8 << 20)
    for name in ("Bergen", "Lisbon", "Genoa", "Bristol"):
        ask(worker, [{"role": "user", "content": f"{name}. {SYSTEM['content']}"}])
    sizes = [f.stat().st_size for f in (tmp_path / "kv").glob("*/*.kv")]
    assert len(sizes) > 1
    assert sum(sizes) <= 8 << 20
