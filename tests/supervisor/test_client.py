"""Both clients against the same canned answers."""

from __future__ import annotations

import asyncio
import copy
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.stub_server import DONE, Sse, Stub, data, stub_server
from uml.protocol import errors
from uml.supervisor import client_wire as wire
from uml.supervisor.client import AsyncClient, Client, Record, Unreachable

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as made:
        yield made


async def _through_thread(url: str, ask: Callable[[Any], Any], **options: Any) -> Any:
    def work() -> Any:
        answer = ask(Client(url, **options))
        return list(answer) if isinstance(answer, Iterator) else answer

    return await asyncio.to_thread(work)


async def _awaited(url: str, ask: Callable[[Any], Any], **options: Any) -> Any:
    async with AsyncClient(url, **options) as client:
        answer = await ask(client)
        return [c async for c in answer] if isinstance(answer, AsyncIterator) else answer


@pytest.fixture(params=[_through_thread, _awaited], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param


def chunk(text: str) -> str:
    return data({"choices": [{"index": 0, "delta": {"content": text}}]})


async def test_an_answer_has_attributes_and_is_a_dict(stub: Stub, call: Any) -> None:
    stub.routes["POST /v1/chat/completions"] = {
        "choices": [{"message": {"role": "assistant", "content": "hi"}}]
    }
    answer = await call(
        stub.url,
        lambda c: c.chat.completions.create(model="m", messages=HELLO, temperature=0),
    )
    assert answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == "hi"
    assert answer.usage is None
    sent = stub.bodies("POST /v1/chat/completions")[0]
    assert sent == {"model": "m", "messages": HELLO, "stream": False, "temperature": 0}


async def test_a_stream_yields_chunks_and_skips_comments(stub: Stub, call: Any) -> None:
    stub.routes["POST /v1/chat/completions"] = Sse(
        ": loading 42%\n\n", chunk("he"), ": beat\n\n", chunk("llo ü"), DONE
    )
    chunks = await call(
        stub.url, lambda c: c.chat.completions.create(model="m", messages=HELLO, stream=True)
    )
    assert [c.choices[0].delta.content for c in chunks] == ["he", "llo ü"]


async def test_an_error_event_raises_what_it_says(stub: Stub, call: Any) -> None:
    body = errors.WorkerDied("gone").to_openai()
    stub.routes["POST /v1/completions"] = Sse(data({"choices": []}), data(body, "error"))
    with pytest.raises(errors.WorkerDied, match="gone"):
        await call(stub.url, lambda c: c.completions.create(model="m", prompt="p", stream=True))


async def test_a_stream_that_breaks_off_raises(stub: Stub, call: Any) -> None:
    stub.routes["POST /v1/completions"] = Sse(data({"choices": []}), cut=True)
    with pytest.raises(Unreachable, match="lost"):
        await call(stub.url, lambda c: c.completions.create(model="m", prompt="p", stream=True))


@pytest.mark.parametrize("kind", [errors.ModelNotFound, errors.QueueFull, errors.DoesNotFit])
async def test_errors_come_back_as_the_class_they_were(
    stub: Stub, call: Any, kind: type[errors.UmlError]
) -> None:
    error = kind("why", param="model")
    stub.routes["GET /status"] = (kind.status, error.to_openai(), {"Retry-After": "7"})
    with pytest.raises(kind) as raised:
        await call(stub.url, lambda c: c.status())
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.param) == ("why", "model")
    assert raised.value.retry_after_s == 7


async def test_nobody_there_is_unreachable(call: Any) -> None:
    with socket.socket() as held:  # bound, not listening: nobody else can take the port
        held.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="no supervisor answers"):
            await call(f"http://127.0.0.1:{held.getsockname()[1]}", lambda c: c.health())


async def test_silence_ends_after_the_timeout(call: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(errors.Stalled):
            await call(url, lambda c: c.health(), timeout=0.05)


@pytest.mark.parametrize("url", ["ftp://host", "http://host:port", "http://"])
async def test_a_bad_address_is_named(call: Any, url: str) -> None:
    with pytest.raises(errors.UmlError) as raised:
        await call(url, lambda c: c.health())
    assert url in raised.value.message


async def test_load_follows_progress_to_the_end(stub: Stub, call: Any) -> None:
    stub.routes["POST /load"] = Sse(
        data({"stage": "weights", "fraction": 0.5}, "progress"),
        ": beat\n\n",
        data({"stage": "starting", "fraction": None}, "progress"),
        data({"model": "m", "error": None}, "done"),
    )
    told: list[Any] = []
    answer = await call(
        stub.url,
        lambda c: c.load("m", keep_alive="10m", on_progress=lambda *a: told.append(a)),
    )
    assert answer == {"model": "m", "error": None}
    assert told == [("weights", 0.5), ("starting", None)]
    assert stub.bodies("POST /load") == [{"model": "m", "keep_alive": "10m", "stream": True}]


async def test_a_load_that_fails_raises(stub: Stub, call: Any) -> None:
    body = errors.LoadFailed("no good").to_openai()
    stub.routes["POST /swap"] = Sse(data(body, "error"))
    with pytest.raises(errors.LoadFailed, match="no good"):
        await call(stub.url, lambda c: c.swap("m"))


async def test_management_calls_say_what_was_asked(stub: Stub, call: Any) -> None:
    for route in ("POST /load", "POST /unload", "POST /shutdown", "DELETE /v1/models/a/b c"):
        stub.routes[route.replace(" c", "%20c")] = {"ok": True}
    stub.routes["GET /logs"] = b"one\ntwo\n"
    assert await call(stub.url, lambda c: c.logs("m", lines=2)) == "one\ntwo\n"
    await call(stub.url, lambda c: c.load("m", dry_run=True))
    await call(stub.url, lambda c: c.unload(all=True, force=True))
    await call(stub.url, lambda c: c.shutdown())
    await call(stub.url, lambda c: c.models.delete("a/b c"))
    assert [(m, p, b) for m, p, b, _ in stub.seen] == [
        ("GET", "/logs?model=m&lines=2", None),
        ("POST", "/load", {"model": "m", "dry_run": True}),
        ("POST", "/unload", {"all": True, "force": True}),
        ("POST", "/shutdown", {}),
        ("DELETE", "/v1/models/a/b%20c", None),
    ]


async def test_key_and_address_come_from_the_environment(
    stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.routes["GET /health"] = {"status": "ok"}
    monkeypatch.setenv("UML_URL", stub.url.removeprefix("http://") + "/")
    monkeypatch.setenv("UML_API_KEY", "secret")
    await call("", lambda c: c.health())
    await call("", lambda c: c.health(), api_key="other")
    keys = [h["Authorization"] for *_, h in stub.seen]
    assert keys == ["Bearer secret", "Bearer other"]


async def test_an_answer_that_is_not_json_is_a_protocol_error(stub: Stub, call: Any) -> None:
    stub.routes["GET /status"] = b"<html>"
    with pytest.raises(errors.ProtocolError):
        await call(stub.url, lambda c: c.status())


def test_an_abandoned_stream_closes_its_connection(stub: Stub) -> None:
    sse = stub.routes["POST /v1/completions"] = Sse(data({"n": 1}), endless=True)
    for one in Client(stub.url).completions.create(model="m", prompt="p", stream=True):
        assert one.n == 1
        break
    assert sse.ended.wait(5)


async def test_an_abandoned_async_stream_closes_its_connection(stub: Stub) -> None:
    sse = stub.routes["POST /v1/completions"] = Sse(data({"n": 1}), endless=True)
    async with AsyncClient(stub.url) as client:
        async with await client.completions.create(model="m", prompt="p", stream=True) as stream:
            assert (await anext(stream)).n == 1
        assert await asyncio.to_thread(sse.ended.wait, 5)


def test_the_blocking_client_does_not_import_aiohttp() -> None:
    program = (
        "import sys, run; run.mount(); from uml.supervisor.client import Client; Client();"
        "sys.exit('aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_records_can_be_copied_and_pickled() -> None:
    record = wire.parse('{"a": {"b": [{"c": 1}]}}')
    assert copy.deepcopy(record) == pickle.loads(pickle.dumps(record)) == record
    assert record.a.b[0].c == 1 and isinstance(record.a, Record)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, b'{"error": {"message": "m", "code": "from_a_newer_one"}}', errors.NotFound, "m"),
        (422, b'{"error": "text"}', errors.BadRequest, "text"),
        (503, b"upstream is down", errors.Unavailable, "upstream is down"),
        (500, b"", errors.InternalError, "the server answered HTTP 500"),
        (418, b"[1]", errors.InternalError, "[1]"),
        (429, b'{"error": {"code": ["odd"]}}', errors.RateLimited, "rate_limited"),
    ],
)
def test_foreign_errors_are_read_by_their_status(
    status: int, body: bytes, kind: type[errors.UmlError], message: str
) -> None:
    error = wire.error_of(status, body, "Wed, 21 Oct 2015 07:28:00 GMT")
    assert type(error) is kind
    assert (error.message, error.retry_after_s) == (message, None)


@given(st.integers(100, 599), st.binary(max_size=80), st.text(max_size=9))
def test_any_answer_makes_an_error(status: int, body: bytes, after: str) -> None:
    assert isinstance(wire.error_of(status, body, after), errors.UmlError)


@given(st.lists(st.text(), max_size=5), st.lists(st.integers(1, 9), max_size=9))
def test_events_survive_any_cutting(texts: list[str], cuts: list[int]) -> None:
    raw = "".join(f": note\n{data(t, 'e')}" for t in texts).encode()
    parser, found = wire.EventParser(), []
    for cut in [*cuts, len(raw)]:
        found += parser.feed(raw[:cut])
        raw = raw[cut:]
    found += parser.feed(raw)
    assert [(e.name, e.read()) for e in found] == [("e", t) for t in texts]


def test_an_event_may_have_several_lines_and_crlf() -> None:
    (event,) = wire.EventParser().feed(b"event: x\r\nid: 4\r\ndata: [1,\r\ndata:2]\r\n\r\n")
    assert (event.name, event.read()) == ("x", [1, 2])
