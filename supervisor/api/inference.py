"""POST /v1/chat/completions, /v1/completions, /v1/embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from uml.protocol.errors import Cancelled
from uml.protocol.messages import Done
from uml.supervisor.api import answers, openai
from uml.supervisor.api.answers import Collector, Vectors
from uml.supervisor.api.body import read_object
from uml.supervisor.api.errors import error_event, shield
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.api.openai import Asked
from uml.supervisor.api.sse import Outlet, stream
from uml.supervisor.api.streams import ChatStream, CompletionStream
from uml.supervisor.api.wishes import Wishes, read_wishes

if TYPE_CHECKING:
    from uml.supervisor.calls import Sink

#: Tasks of one request that run at once.
_SIDE_BY_SIDE = 32


@dataclass
class _Shifted:
    """A sink whose choices, `width` of them, are counted on from `first`."""

    sink: Sink
    first: int
    width: int

    def waiting(self, state: str, fraction: float | None, position: int) -> None:
        self.sink.waiting(state, fraction, position)

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        self.sink.chunk(self.first + index, delta)

    def backlog(self) -> int:
        return self.sink.backlog()

    def restart(self, choices: range | None = None) -> bool:
        return self.sink.restart(range(self.first, self.first + self.width))


async def run(gateway: Gateway, wishes: Wishes, asked: Asked, sink: Sink) -> Done:
    """Do all tasks of a request; one `Done` for all of them. Raises: UmlError."""
    if len(asked.tasks) == 1:
        return await _run_one(gateway, wishes, asked, 0, sink)
    gate = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(position: int) -> Done:
        async with gate:
            return await _run_one(
                gateway,
                wishes,
                asked,
                position,
                _Shifted(sink, position * asked.width, asked.width),
            )

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(i)) for i in range(len(asked.tasks))]
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from None
    found = [task.result() for task in running]
    return Done(
        id="",
        finish=[reason for done in found for reason in done.finish],
        usage=answers.add_usage([done.usage for done in found]),
    )


async def _run_one(
    gateway: Gateway, wishes: Wishes, asked: Asked, position: int, sink: Sink
) -> Done:
    done = await gateway.pool.serving.run(
        wishes.model,
        asked.tasks[position],
        sink,
        keep_alive_s=wishes.keep_alive_s,
        options=wishes.options,
    )
    if "cancelled" in done.finish:
        raise Cancelled("the answer was cut")
    return done


async def _read(request: web.Request, verb: str) -> tuple[dict[str, Any], Wishes]:
    gateway = request.app[GATEWAY]
    body = await read_object(request)
    gateway.refuse_when_stopping()
    return body, read_wishes(body, request.headers, gateway.registry).for_task(verb)


async def chat(request: web.Request) -> web.StreamResponse:
    body, wishes = await _read(request, "chat")
    own = request.app[GATEWAY].config.for_model(wishes.model.id)
    asked = openai.read_chat(body, wishes.model.id, own)
    if asked.stream:
        return await _stream(request, wishes, asked, ChatStream)
    return await _collect(request, wishes, asked, answers.chat_answer)


async def complete(request: web.Request) -> web.StreamResponse:
    body, wishes = await _read(request, "complete")
    own = request.app[GATEWAY].config.for_model(wishes.model.id)
    asked = openai.read_completion(body, own)
    if asked.stream:
        return await _stream(request, wishes, asked, CompletionStream)
    return await _collect(request, wishes, asked, answers.completion_answer)


async def embed(request: web.Request) -> web.StreamResponse:
    body, wishes = await _read(request, "embed")
    asked = openai.read_embedding(body)
    sink = Vectors()
    done = await run(request.app[GATEWAY], wishes, asked, sink)
    text = answers.embedding_answer(
        wishes.asked, sink.found, asked.inputs, asked.encoding, done.usage
    )
    return web.Response(text=text, content_type="application/json", headers=sink.headers())


async def _stream(
    request: web.Request,
    wishes: Wishes,
    asked: Asked,
    shape: Callable[[Outlet, str, bool], ChatStream | CompletionStream],
) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    outlet = Outlet(request, gateway.flusher)
    sink = shape(outlet, wishes.asked, asked.include_usage)

    async def work() -> None:
        done = await run(gateway, wishes, asked, sink)
        sink.end(done.finish, done.usage)

    return await stream(outlet, work(), sink, lambda e: error_event(shield(e, gateway, request)))


async def _collect(
    request: web.Request, wishes: Wishes, asked: Asked, shape: Callable[..., dict[str, Any]]
) -> web.StreamResponse:
    sink = Collector()
    done = await run(request.app[GATEWAY], wishes, asked, sink)
    answer = shape(wishes.asked, sink, done.finish, done.usage, asked.logprobs, done.timings)
    return web.json_response(answer, dumps=answers.dump, headers=sink.headers())
