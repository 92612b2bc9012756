"""`AsyncClient`: the calls of `Client`, to be awaited."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp

from uml.protocol.errors import BadRequest, ProtocolError, Stalled
from uml.supervisor import client_wire as wire
from uml.supervisor.client_calls import Api, Call
from uml.supervisor.client_files import Binary
from uml.supervisor.client_wire import Record


class AsyncClient(Api):
    """Parameters as `Client`'s. `async with AsyncClient() as uml:`, or `await uml.close()`.

    Cancelling a call, or closing the stream it answered with, cancels the request.
    """

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, timeout: float | None = 600
    ) -> None:
        super().__init__()
        self.base_url = wire.base_url(base_url)
        self._key = api_key
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session:
            await self._session.close()
            self._session = None

    async def _send(self, call: Call) -> Any:
        if self._session is None:  # needs a running loop, which the constructor may not have
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        response = await self._ask(self._session, call)
        try:
            with _translated(self.base_url):
                if response.status >= 400:
                    after = response.headers.get("Retry-After")
                    raise wire.error_of(response.status, await response.read(), after)
                if response.content_type == "text/event-stream":
                    if call.answer == "stream":
                        return AsyncStream(response, _values(response, self.base_url))
                    return await self._follow(call, response)
                if call.answer == "lines":
                    return AsyncStream(response, _lines(response, self.base_url))
                body = await response.read()
        except BaseException:
            response.close()
            raise
        response.release()
        if call.answer == "text":
            return body.decode(errors="replace")
        if call.answer == "bytes":
            return Binary(body)
        try:
            return wire.parse(body) if body else Record()
        except ValueError as e:
            raise ProtocolError(f"{self.base_url}{call.path} did not answer JSON: {e}") from e

    async def _ask(self, session: aiohttp.ClientSession, call: Call) -> aiohttp.ClientResponse:
        body, media_type = call.content()
        headers = wire.headers(self._key, body, media_type)
        url = self.base_url + call.path
        try:
            return await session.request(call.method, url, data=body, headers=headers)
        except aiohttp.InvalidURL as e:
            raise BadRequest(f"{self.base_url!r} is not an address: {e}") from e
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
            raise wire.nobody(self.base_url, getattr(e, "strerror", None) or e) from e
        except TimeoutError as e:
            raise Stalled(f"{self.base_url} did not answer in time") from e
        except (aiohttp.ClientError, OSError) as e:
            raise wire.broken(self.base_url, e) from e

    async def _follow(self, call: Call, response: aiohttp.ClientResponse) -> Any:
        async for name, value in _events(response, self.base_url):
            if name == "done":
                response.close()
                return value
            call.progress(value)
        raise wire.broken(self.base_url, "")


async def _events(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[tuple[str, Any]]:
    parser = wire.EventParser()
    while True:
        with _translated(url):
            data = await response.content.readany()
        if not data:
            return
        for event in parser.feed(data):
            try:
                value = event.read()
            except ValueError as e:
                raise ProtocolError(f"an event of {url} is not JSON: {e}") from e
            if value is None:
                return
            yield event.name, value


async def _values(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[Any]:
    async for _, value in _events(response, url):
        yield value


async def _lines(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[str]:
    while True:
        with _translated(url):
            line = await response.content.readline()
        if not line:
            return
        yield line.decode(errors="replace").rstrip("\r\n")


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as e:
        raise Stalled(f"{url} sent nothing in time") from e
    except (aiohttp.ClientError, OSError) as e:
        raise wire.broken(url, e) from e


class AsyncDownload:
    """A binary answer whose bytes are taken as they come. Closing it cancels the request."""

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response, self._url = response, url

    async def iter_bytes(self, chunk_size: int = 65536) -> AsyncIterator[bytes]:
        while True:
            with _translated(self._url):
                data = await self._response.content.read(chunk_size)
            if not data:
                return
            yield data

    async def close(self) -> None:
        self._response.close()

    async def __aenter__(self) -> AsyncDownload:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncStream:
    """Iterates over the chunks of an answer; closing it cancels the request."""

    def __init__(self, response: aiohttp.ClientResponse, chunks: AsyncIterator[Any]) -> None:
        self._response, self._chunks = response, chunks

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._chunks)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Also when it is only half read."""
        self._response.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
