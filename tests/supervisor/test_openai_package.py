"""The official `openai` package against a real server, without a workaround."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest

from tests.supervisor.served import Served, served

T = TypeVar("T")
HELLO: Any = [{"role": "user", "content": "who"}]
FILES = {"alpha": {"tasks": ["chat", "complete"]}, "e": {"type": "embedding", "tasks": ["embed"]}}


async def using(house: Served, work: Callable[[openai.OpenAI], T]) -> T:
    """Run blocking `work` in a thread, with a client that is closed after."""

    def run() -> T:
        with openai.OpenAI(base_url=house.url + "/v1", api_key="any", max_retries=0) as client:
            return work(client)

    return await asyncio.to_thread(run)


async def test_chat_streams_embeds_and_lists(tmp_path: Path) -> None:
    def work(client: openai.OpenAI) -> None:
        chat = client.chat.completions.create(model="alpha", messages=HELLO, max_tokens=3)
        assert chat.choices[0].message.content == "alpha tok1 tok2 "
        assert chat.usage and chat.usage.total_tokens == 4
        assert chat.choices[0].finish_reason == "length"
        stream = client.chat.completions.create(
            model="alpha",
            messages=HELLO,
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "alpha tok1 tok2 " and chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 3
        done = client.completions.create(model="alpha", prompt=["say=a", "say=b"], max_tokens=1)
        assert [c.text for c in done.choices] == ["a ", "b "]
        plain = client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
        packed = client.embeddings.create(model="e", input=["a", "b"])  # asks for base64
        assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding)
        assert [m.id for m in client.models.list()] == ["alpha", "e"]
        assert client.models.retrieve("alpha").owned_by == "uml"

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)


async def test_errors_become_the_packages_own(tmp_path: Path) -> None:
    def work(client: openai.OpenAI) -> None:
        create: Any = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as missing:
            create(model="alpah", messages=HELLO)
        assert missing.value.code == "model_not_found" and "alpha" in missing.value.message
        with pytest.raises(openai.BadRequestError) as bad:
            create(model="alpha", messages=HELLO, temperature=9)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as wrong:
            create(model="e", messages=HELLO, stream=True)
        assert wrong.value.code == "task_not_supported"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
        with pytest.raises(openai.APIError, match="the worker of alpha"):
            dies: Any = [{"role": "user", "content": "slow=0.05 die_after_n=2"}]
            for _ in create(model="alpha", messages=dies, stream=True):
                pass

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)


async def test_key_is_the_packages_api_key(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES, api_key="secret") as house:
        with pytest.raises(openai.AuthenticationError):
            await using(house, lambda client: client.models.list())
        async with openai.AsyncOpenAI(base_url=house.url + "/v1", api_key="secret") as client:
            stream = await client.chat.completions.create(
                model="alpha", messages=HELLO, max_tokens=2, stream=True
            )
            texts = [c.choices[0].delta.content or "" async for c in stream]
        assert "".join(texts) == "alpha tok1 "


async def test_stream_closed_half_way_frees_its_slot(tmp_path: Path) -> None:
    def work(client: openai.OpenAI) -> None:
        slow: Any = [{"role": "user", "content": "slow=0.02"}]
        stream = client.chat.completions.create(
            model="alpha", messages=slow, max_tokens=100_000, stream=True
        )
        for _, _chunk in zip(range(3), stream, strict=False):
            pass
        stream.close()

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)
        await house.becomes_idle()
