"""Real models behind the real address: the official client, swaps, limits."""

from __future__ import annotations

import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.serving import BASE, CHAT, EMBED, Serving, serving
from uml.protocol.errors import UmlError

pytestmark = [
    pytest.mark.llama,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "UML_TEST_LLAMA_PYTHON" not in os.environ,
        reason="needs the llama_cpp environment: ./run.py test",
    ),
]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def test_official_client_lists_models(official: Any) -> None:
    assert {m.id for m in official.models.list()} >= {CHAT, BASE, EMBED}
    assert official.models.retrieve(CHAT).id == CHAT


def test_official_client_chats(official: Any) -> None:
    answer = official.chat.completions.create(
        model=CHAT, messages=QUESTION, temperature=0, max_tokens=24
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_official_client_streams_the_same(official: Any) -> None:
    whole = official.chat.completions.create(
        model=CHAT, messages=QUESTION, temperature=0, max_tokens=24
    )
    chunks = list(
        official.chat.completions.create(
            model=CHAT,
            messages=QUESTION,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] is not None


def test_official_client_embeds(official: Any) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply today."]
    vectors = [e.embedding for e in official.embeddings.create(model=EMBED, input=texts).data]
    assert [len(v) for v in vectors] == [384] * 3

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(vectors[0], vectors[1]) > 0.5 > cosine(vectors[0], vectors[2])


def test_official_client_gets_its_own_errors(official: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean smollm2"):
        official.chat.completions.create(model="smolm2-135m", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="cannot embed"):
        official.embeddings.create(model=CHAT, input="x")
    with pytest.raises(openai.BadRequestError, match="cannot chat"):
        official.chat.completions.create(model=BASE, messages=QUESTION)


def test_prompt_beyond_the_context_is_a_400(official: Any) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            list(official.chat.completions.create(model=CHAT, messages=long, stream=stream))
        assert caught.value.code == "context_length_exceeded"


def test_larger_num_ctx_reloads_the_model(served: Serving, official: Any) -> None:
    served.client.unload(CHAT)
    served.client.load(CHAT, options={"n_ctx": 512})
    assert served.worker(CHAT)["context"] == 512
    long = [{"role": "user", "content": "word " * 600}]
    with pytest.raises(openai.BadRequestError) as caught:
        official.chat.completions.create(model=CHAT, messages=long, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    answer = official.chat.completions.create(
        model=CHAT, messages=long, max_tokens=1, extra_body={"num_ctx": 1024}
    )
    assert answer.usage.prompt_tokens > 600
    assert served.worker(CHAT)["context"] == 1024
    served.client.unload(CHAT)


def test_a_draft_model_guesses_beside_it_and_changes_no_answer(served: Serving) -> None:
    client = served.client
    task: dict[str, Any] = {"model": CHAT, "messages": QUESTION, "temperature": 0}
    client.unload(CHAT)
    alone = client.chat.completions.create(**task).choices[0].message.content
    client.unload(CHAT)
    with pytest.raises(UmlError, match="vocabulary") as refused:
        client.load(CHAT, options={"draft_model": BASE})
    assert refused.value.param == "draft_model"
    plan = client.load(CHAT, options={"draft_model": CHAT}, dry_run=True)
    assert f"draft {CHAT}" in plan.reason
    worker = client.load(CHAT, options={"draft_model": CHAT})
    assert worker.draft_model == CHAT and worker.lease_bytes["ram"] == plan.need_bytes["ram"]
    assert client.chat.completions.create(**task).choices[0].message.content == alone
    with pytest.raises(UmlError, match="unload it first"):
        client.load(CHAT, options={"draft_model": BASE})
    assert client.load(CHAT).id == worker.id, "who asks for none takes it as it is"
    assert client.unload(CHAT).receipts[0].verified == "yes"


def test_sixteen_clients_at_once_are_all_answered(official: Any) -> None:
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        reply = official.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": f"Say the number {i}."}],
            temperature=0,
            max_tokens=12,
        )
        answers[i] = reply.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert sum(str(i) in text for i, text in answers.items()) >= 12, answers


def test_ten_swaps_answer_right_and_give_everything_back(served: Serving) -> None:
    """Chat model and base model by turns, room for one: A -> B -> A, ten times."""
    client = served.client
    client.unload(all=True)
    before = served.rss()
    wrong = []
    for round_ in range(20):
        if round_ % 2 == 0:
            client.swap(CHAT)
            reply = client.chat.completions.create(
                model=CHAT, messages=QUESTION, temperature=0, max_tokens=24
            )
            text = reply.choices[0].message.content
        else:
            client.swap(BASE)
            done = client.completions.create(
                model=BASE, prompt="Paris is the capital of", temperature=0, max_tokens=4
            )
            text = done.choices[0].text
        if ("Paris" if round_ % 2 == 0 else "France") not in text:
            wrong.append((round_, text))
        loaded = [w["model"] for w in client.status()["workers"] if w["state"] == "ready"]
        assert loaded == [CHAT if round_ % 2 == 0 else BASE]
    assert not wrong
    receipts = client.status()["receipts"][-19:]
    assert all(r["verified"] == "yes" for r in receipts), [
        r for r in receipts if r["verified"] != "yes"
    ]
    client.unload(all=True)
    assert len(served.tree()) == 1, "no process left"
    assert served.rss() <= before * 1.05


def test_model_that_cannot_fit_alone_is_422_with_the_arithmetic(tmp_path: Path) -> None:
    with serving(tmp_path, UML_BUDGET="ram=150MB") as s:
        with pytest.raises(UmlError, match=r"weights \+ .* KV cache") as caught:
            s.client.load(CHAT)
        assert caught.value.status == 422


def _models() -> Path:
    return Path(os.environ["UML_TEST_MODELS"])


def test_damaged_files_are_refused_and_never_hang(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir(parents=True)
    real = _models() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    data = real.read_bytes()
    (models / "cut.gguf").write_bytes(data[:50_000_000])
    (models / "zero.gguf").write_bytes(b"")
    (models / "renamed.gguf").write_bytes(b"\x89PNG\r\n" + bytes(1000))
    # The header is whole but speaks of an architecture nobody knows: only the library can tell.
    key = b"general.architecture" + struct.pack("<IQ", 8, 5)
    at = data.index(key) + len(key)
    strange = bytearray(data)
    strange[at : at + 5] = b"lamda"
    (models / "strange.gguf").write_bytes(bytes(strange))
    with serving(tmp_path, UML_MODEL_DIRS="") as s:
        for name, says in [
            ("cut", "truncated"),
            ("zero", "an empty file"),
            ("renamed", "not a GGUF file"),
        ]:
            with pytest.raises(UmlError, match=says) as caught:
                s.client.load(name)
            assert caught.value.status == 422
        assert s.client.status()["workers"] == [], "no worker was spent on them"
        with pytest.raises(UmlError, match="lamda") as caught:
            s.client.load("strange")
        assert caught.value.status == 500


def test_kill_9_of_a_real_worker_in_mid_stream(served: Serving, official: Any) -> None:
    stream = official.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Tell a very long story."}],
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    with pytest.raises(openai.APIError, match="SIGKILL"):
        for i, _ in enumerate(stream):
            if i == 5:
                os.kill(served.worker(CHAT)["pid"], 9)
    reply = official.chat.completions.create(
        model=CHAT, messages=QUESTION, temperature=0, max_tokens=24
    )
    assert "Paris" in reply.choices[0].message.content


def test_file_dropped_in_appears_and_answers_without_a_restart(served: Serving) -> None:
    target = served.home / "models/dropped-in.Q4_1.gguf"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(_models() / "SmolLM2-135M-Instruct.Q4_1.gguf", target)
    assert "dropped-in" in {m.id for m in served.client.models.list().data}
    reply = served.client.chat.completions.create(
        model="dropped-in", messages=QUESTION, temperature=0, max_tokens=24
    )
    assert "Paris" in reply.choices[0].message.content
    served.client.unload("dropped-in")
