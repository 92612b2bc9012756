"""The Python client: blocking, standard library alone. `AsyncClient` is the same on aiohttp.

from uml.supervisor.client import Client
uml = Client()
for chunk in uml.chat.completions.create(model="smollm2", messages=[...], stream=True):
    print(chunk.choices[0].delta.content or "", end="")
"""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uml.protocol.errors import BadRequest, ProtocolError, Stalled
from uml.supervisor import client_wire as wire
from uml.supervisor.client_calls import Api, Call
from uml.supervisor.client_files import Binary
from uml.supervisor.client_wire import Record, Unreachable

if TYPE_CHECKING:
    from uml.supervisor.client_async import AsyncClient

__all__ = ["AsyncClient", "Client", "Record", "Stream", "Unreachable"]


def __getattr__(name: str) -> Any:
    """`AsyncClient` on demand: aiohttp is slow to import and the command line does without."""
    if name != "AsyncClient":
        raise AttributeError(name)
    from uml.supervisor.client_async import AsyncClient

    return AsyncClient


class Client(Api):
    """base_url: default `UML_URL`, then http://127.0.0.1:8484. api_key: default `UML_API_KEY`.
    timeout: seconds without a byte, None = for ever. Threads may share one: every call has its own
    connection.
    """

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, timeout: float | None = 600
    ) -> None:
        super().__init__()
        self.base_url = wire.base_url(base_url)
        self._key, self._timeout = api_key, timeout
        #: What a request of one's own needs to be let in.
        self.headers = wire.headers(api_key, None)

    def _send(self, call: Call) -> Any:
        stream = _Answer(self._connect(), self.base_url)
        try:
            response = stream.ask(call, self._key)
            if call.answer == "download":
                return Download(stream)
            if response.getheader("Content-Type", "").startswith("text/event-stream"):
                if call.answer == "stream":
                    return Stream(stream, (value for _, value in stream.events()))
                return self._follow(call, stream)
            if call.answer == "lines":
                return Stream(stream, stream.lines())
            body = stream.read()
        except BaseException:
            stream.close()
            raise
        stream.close()
        if call.answer == "text":
            return body.decode(errors="replace")
        if call.answer == "bytes":
            return Binary(body)
        try:
            return wire.parse(body) if body else Record()
        except ValueError as e:
            raise ProtocolError(f"{self.base_url}{call.path} did not answer JSON: {e}") from e

    def _follow(self, call: Call, answer: _Answer) -> Any:
        with contextlib.closing(answer):
            for name, value in answer.events():
                if name == "done":
                    return value
                call.progress(value)
            raise wire.broken(self.base_url, "")

    def _connect(self) -> http.client.HTTPConnection:
        url = urlsplit(self.base_url)
        secure = url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        try:
            if not url.hostname or url.scheme not in ("http", "https"):
                raise ValueError("http://HOST:PORT is")
            return kind(url.hostname, url.port, timeout=self._timeout)
        except ValueError as e:
            raise BadRequest(f"{self.base_url!r} is not an address: {e}") from e


class _Answer:
    """One connection with one answer on it; the errors of the transport become ours."""

    def __init__(self, connection: http.client.HTTPConnection, url: str) -> None:
        self._connection, self._url = connection, url
        self._response: http.client.HTTPResponse | None = None

    def ask(self, call: Call, key: str | None) -> http.client.HTTPResponse:
        body, media_type = call.content()
        try:
            self._connection.connect()
        except OSError as e:
            raise wire.nobody(self._url, e.strerror or e) from e
        with self._translated():
            path = urlsplit(self._url).path + call.path
            headers = wire.headers(key, body, media_type)
            self._connection.request(call.method, path, body, headers)
            self._response = self._connection.getresponse()
            if self._response.status >= 400:
                after = self._response.getheader("Retry-After")
                raise wire.error_of(self._response.status, self._response.read(), after)
            return self._response

    def read(self) -> bytes:
        assert self._response
        with self._translated():
            return self._response.read()

    def pieces(self, most: int) -> Iterator[bytes]:
        """Bytes as they come, until the end. Raises: UmlError when it breaks off."""
        assert self._response
        while True:
            with self._translated():
                data = self._response.read1(most)
            if not data:
                return
            yield data

    def events(self) -> Iterator[tuple[str, Any]]:
        """(name, value) until `[DONE]`. Raises: UmlError sent as an event, or when it breaks."""
        assert self._response
        parser = wire.EventParser()
        while True:
            with self._translated():
                data = self._response.read1(65536)
            if not data:
                return
            for event in parser.feed(data):
                try:
                    value = event.read()
                except ValueError as e:
                    raise ProtocolError(f"an event of {self._url} is not JSON: {e}") from e
                if value is None:
                    return
                yield event.name, value

    def lines(self) -> Iterator[str]:
        assert self._response
        while True:
            with self._translated():
                line = self._response.readline()
            if not line:
                return
            yield line.decode(errors="replace").rstrip("\r\n")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as e:
            raise Stalled(f"{self._url} sent nothing for {self._connection.timeout:g} s") from e
        except (OSError, http.client.HTTPException) as e:
            raise wire.broken(self._url, e) from e

    def close(self) -> None:
        if self._response:
            self._response.close()
        self._connection.close()


class Download:
    """A binary answer whose bytes are taken as they come. Closing it cancels the request."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def iter_bytes(self, chunk_size: int = 65536) -> Iterator[bytes]:
        return self._answer.pieces(chunk_size)

    def stream_to_file(self, path: str | os.PathLike[str]) -> None:
        with open(path, "wb") as f:
            for piece in self.iter_bytes():
                f.write(piece)

    def close(self) -> None:
        self._answer.close()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Stream(Iterator[Any]):
    """Iterates over the chunks of an answer. Closing it, or losing it, cancels the request."""

    def __init__(self, answer: _Answer, chunks: Iterator[Any]) -> None:
        self._answer, self._chunks = answer, chunks

    def __next__(self) -> Any:
        try:
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._chunks.close()  # type: ignore[attr-defined]
        self._answer.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._answer.close()
