"""Both clients against a real server: calls, streams that are left, errors."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.supervisor.served import Served, served
from uml.protocol.errors import (
    BadRequest,
    Conflict,
    LoadFailed,
    ModelNotFound,
    TaskNotSupported,
    Unauthorized,
    WorkerDied,
)
from uml.supervisor.client import AsyncClient, Client, Unreachable

T = TypeVar("T")
WHO = [{"role": "user", "content": "who"}]
SLOW = [{"role": "user", "content": "slow=0.02"}]
FILES: dict[str, dict[str, Any]] = {
    "alpha": {"options": {"slow_load": 0.2}},
    "beta": {"tasks": ["chat"]},
    "broken": {"options": {"fail_load": "no such luck"}},
}


async def using(house: Served, work: Callable[[Client], T]) -> T:
    return await asyncio.to_thread(lambda: work(Client(house.url, timeout=30)))


async def test_client_asks_and_manages(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []

    def work(uml: Client) -> None:
        loaded = uml.load("alpha", keep_alive="1h", on_progress=lambda s, f: told.append((s, f)))
        assert loaded.state == "ready" and loaded["model"] == "alpha"
        answer = uml.chat.completions.create(model="alpha", messages=WHO, max_tokens=2)
        assert answer.choices[0].message.content == "alpha tok1 "
        assert answer["usage"]["completion_tokens"] == answer.usage.completion_tokens == 2
        chunks = uml.completions.create(model="alpha", prompt="who", max_tokens=2, stream=True)
        assert "".join(c.choices[0].text for c in chunks) == "alpha tok1 "
        vectors = uml.embeddings.create(model="alpha", input=["a", "b"])
        assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == 8
        assert {m.id for m in uml.models.list().data} == set(FILES)
        assert uml.models.retrieve("alpha").state == "ready"
        assert uml.swap("beta", dry_run=True).fits is True
        swapped = uml.swap("beta")
        assert [r.model for r in swapped.receipts] == ["alpha"]
        assert [w.model for w in uml.status().workers] == ["beta"]
        assert "worker.ready" in uml.logs(lines=50)
        assert uml.unload(all=True).receipts[0].verified == "yes"
        assert uml.models.delete("beta").deleted is True
        assert uml.health().service == "uml"

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)
    assert [f for _, f in told if f is not None]


async def test_client_raises_the_errors_of_the_tree(tmp_path: Path) -> None:
    def work(uml: Client) -> None:
        create = uml.chat.completions.create
        with pytest.raises(ModelNotFound, match="alpha"):
            create(model="alpah", messages=WHO)
        with pytest.raises(BadRequest) as bad:
            create(model="alpha", messages=WHO, temperature="hot")
        assert bad.value.param == "temperature"
        with pytest.raises(TaskNotSupported):
            uml.embeddings.create(model="beta", input="x")
        with pytest.raises(LoadFailed, match="no such luck"):
            uml.load("broken")
        with pytest.raises(WorkerDied):
            dies = [{"role": "user", "content": "slow=0.05 die_after_n=2"}]
            list(create(model="alpha", messages=dies, stream=True))
        uml.load("alpha")
        with pytest.raises(Conflict):
            uml.models.delete("alpha")

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)
    with pytest.raises(Unreachable):
        Client(house.url, timeout=5).health()


async def test_client_takes_address_and_key_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, files=FILES, api_key="secret") as house:
        monkeypatch.setenv("UML_URL", house.url)
        with pytest.raises(Unauthorized):
            await asyncio.to_thread(lambda: Client().status())
        monkeypatch.setenv("UML_API_KEY", "secret")
        assert (await asyncio.to_thread(lambda: Client().status())).url == house.url


@pytest.mark.parametrize("how", ["closed", "lost"])
async def test_client_stream_that_is_left_cancels_the_request(tmp_path: Path, how: str) -> None:
    def work(uml: Client) -> None:
        stream = uml.chat.completions.create(
            model="alpha", messages=SLOW, max_tokens=100_000, stream=True
        )
        assert next(stream).choices[0].delta.role == "assistant"
        if how == "closed":
            stream.close()
        del stream
        gc.collect()

    async with served(tmp_path, files=FILES) as house:
        await using(house, work)
        await house.becomes_idle()


async def test_async_client_asks_streams_and_leaves(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house, AsyncClient(house.url) as uml:
        assert (await uml.load("alpha")).state == "ready"
        answer = await uml.chat.completions.create(model="alpha", messages=WHO, max_tokens=2)
        assert answer.choices[0].message.content == "alpha tok1 "
        stream = await uml.chat.completions.create(
            model="alpha", messages=SLOW, max_tokens=100_000, stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert house.busy() == 1
        await stream.close()
        await house.becomes_idle()
        asking = asyncio.create_task(
            uml.chat.completions.create(model="alpha", messages=SLOW, max_tokens=100_000)
        )
        while house.busy() == 0:
            await asyncio.sleep(0.005)
        asking.cancel()
        await house.becomes_idle()
        with pytest.raises(ModelNotFound):
            await uml.models.retrieve("nobody")
