"""Server-sent events, written straight to the socket.

The hot path is `Outlet.send`: it notes a text, and once per turn of the event loop, however many
texts came with one frame from a worker, each outlet with something to say makes one write. No
queue, no task and no await stand between a token and its socket.

Headers are held until there is something to say or `HOLD_S` is over, so that what fails early
still gets its proper status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http import HttpVersion11

#: How long headers wait for the first output.
HOLD_S = 2.0
#: A comment this often tells a waiting client that we are alive.
COMMENT_S = 1.0
#: A reader that takes nothing for this long is cut.
READER_STALL_S = 60.0
#: Bytes that may wait in a socket's buffer without its reader counting as behind.
_BEHIND = 64 * 1024

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect a stream before it passes it on
}


class Flusher:
    """Lets every outlet that has something to say write once, at the end of this turn."""

    def __init__(self) -> None:
        self._waiting: list[Outlet] = []

    def add(self, outlet: Outlet) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(outlet)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outlet in waiting:
            outlet.flush()


class Outlet:
    """The body of one stream. Texts sent before `open` wait for it."""

    def __init__(
        self, request: web.Request, flusher: Flusher, headers: Mapping[str, str] = HEADERS
    ) -> None:
        self._request, self._flusher = request, flusher
        self._transport: asyncio.Transport | None = None
        self._texts: list[str] = []
        self._dirty = False
        self._chunked = request.version >= HttpVersion11
        self._response = web.StreamResponse(headers=headers)
        #: Done when the first content was sent.
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def hold_s(self) -> float | None:
        """How long headers wait for the first output; None: until it is there."""
        return HOLD_S

    @property
    def opened(self) -> bool:
        return self._transport is not None

    @property
    def alive(self) -> bool:
        """Whether there may still be a reader."""
        return self._transport is None or not self._transport.is_closing()

    def send(self, text: str) -> None:
        """Write one or more whole events, soon."""
        self._texts.append(text)
        if not self.started.done():
            self.started.set_result(None)
        if not self._dirty:
            self._dirty = True
            if self._transport is not None:
                self._flusher.add(self)

    def comment(self, text: str) -> None:
        """Something to keep the connection alive, which clients skip."""
        self._texts.append(f": {text}\n\n")
        self.flush()

    def flush(self) -> None:
        """Write now what was sent."""
        self._dirty = False
        if self._transport is None or not self._texts:
            return
        data = self._collected()
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _collected(self) -> bytes:
        data = "".join(self._texts).encode("utf-8", "replace")
        self._texts.clear()
        return data

    def fail(self, text: str) -> None:
        """The stream's last event, which says why there is no more."""
        self.send(text)

    def backlog(self) -> int:
        """Bytes that the reader has not taken yet."""
        if self._transport is None:
            return sum(map(len, self._texts))
        return self._transport.get_write_buffer_size()

    async def open(self, headers: dict[str, str]) -> web.StreamResponse:
        """Send the headers and what has waited. Raises: ConnectionResetError."""
        if self._chunked:
            self._response.enable_chunked_encoding()
        self._response.headers.update(headers)
        await self._response.prepare(self._request)
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        self._transport = transport
        self.flush()
        return self._response

    async def close(self, *, cut: bool = False) -> None:
        """End the body. cut: the stream broke off, and a reader that is far behind does not get
        the rest. The connection lives on: a client may have its next request on it already.

        Raises: ConnectionResetError.
        """
        self.flush()
        if not self._chunked:
            self._response.force_close()
        if (cut and self.backlog() > _BEHIND) or not await self._taken():
            if self._transport is not None:
                self._transport.abort()
            raise ConnectionResetError("the reader took nothing any more")
        await self._response.write_eof()

    async def _taken(self) -> bool:
        """Whether the reader took what was written, or nearly all of it."""
        left, still_s, pause = self.backlog(), 0.0, 0.01
        while left > _BEHIND:
            await asyncio.sleep(pause)
            before, left = left, self.backlog()
            still_s = still_s + pause if left >= before else 0.0
            if still_s > READER_STALL_S:
                return False
            pause = min(1.0, pause * 2)
        return True


class ByteOutlet(Outlet):
    """A stream of plain bytes: nothing can be said in it but those, and one that fails is broken
    off, so that nobody takes it for whole."""

    def __init__(self, request: web.Request, flusher: Flusher, media_type: str) -> None:
        super().__init__(request, flusher, HEADERS | {"Content-Type": media_type})
        self._pieces: list[bytes] = []
        self._failed = False

    @property
    def hold_s(self) -> float | None:
        return None

    def send_bytes(self, data: bytes) -> None:
        self._pieces.append(data)
        self.send("")

    def comment(self, text: str) -> None:
        """There is no place for one."""

    def fail(self, text: str) -> None:
        self._failed = True

    def backlog(self) -> int:
        return sum(map(len, self._pieces)) + super().backlog()

    async def close(self, *, cut: bool = False) -> None:
        if self._failed and self._transport is not None:
            self.flush()
            self._transport.abort()
            raise ConnectionResetError("broken off")
        await super().close(cut=cut)

    def _collected(self) -> bytes:
        self._texts.clear()
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


class Waiting(Protocol):
    """What a waiting client is told."""

    def headers(self) -> dict[str, str]: ...

    def comment(self) -> str: ...


async def stream(
    outlet: Outlet,
    work: Coroutine[Any, Any, None],
    waiting: Waiting,
    failed: Callable[[BaseException], str],
) -> web.StreamResponse:
    """Run `work`, which sends its output to `outlet`, as the answer to a request.

    Before the headers are out an exception of `work` is raised here; after that `failed` turns it
    into the stream's last event. A client that leaves cancels `work`.
    """
    running = asyncio.create_task(work)
    both = (running, outlet.started)
    try:
        await asyncio.wait(both, timeout=outlet.hold_s, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        response = await outlet.open(waiting.headers())
        while not running.done() and not outlet.started.done():
            outlet.comment(waiting.comment())
            await asyncio.wait(both, timeout=COMMENT_S, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((running,))
        error = running.exception()
        if error is not None:
            outlet.fail(failed(error))
        await outlet.close(cut=error is not None)
        return response
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()
