"""A supervisor made of canned answers, in a thread, for tests of clients."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

#: What a route answers: a JSON value, (status, value[, headers]), bytes, or SSE blocks to write.
Reply = Any


class Sse:
    """Blocks of a stream, written one by one. ended: set when the client is gone or it is over."""

    def __init__(self, *blocks: str, endless: bool = False, cut: bool = False) -> None:
        self.blocks, self.endless, self.cut = blocks, endless, cut
        self.ended = threading.Event()


def data(value: Any, event: str = "") -> str:
    return (f"event: {event}\n" if event else "") + f"data: {json.dumps(value)}\n\n"


DONE = "data: [DONE]\n\n"


class Stub:
    """routes: "GET /path" -> reply, or a function of the body. seen: (method, path, body, headers)
    of every request."""

    def __init__(self) -> None:
        self.routes: dict[str, Reply | Callable[[Any], Reply]] = {}
        self.seen: list[tuple[str, str, Any, dict[str, str]]] = []
        self.url = ""

    def bodies(self, route: str) -> list[Any]:
        """Bodies of the requests that a route got."""
        return [b for m, p, b, _ in self.seen if f"{m} {urlsplit(p).path}" == route]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is what some tests are about; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def stub_server() -> Iterator[Stub]:
    stub = Stub()
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            stub.seen.append((self.command, self.path, body, dict(self.headers)))
            route = f"{self.command} {urlsplit(self.path).path}"
            reply = stub.routes.get(
                route, (404, {"error": {"code": "not_found", "message": f"no {route}"}})
            )
            if callable(reply):
                reply = reply(body)
            try:
                self._stream(reply) if isinstance(reply, Sse) else self._answer(reply)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_POST = do_DELETE = do_GET

        def _answer(self, reply: Reply) -> None:
            status, value, headers = (200, reply, {})
            if isinstance(reply, tuple):
                status, value, headers = (*reply, {})[:3]
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            kind = "text/plain" if isinstance(value, bytes) else "application/json"
            self.send_response(status)
            sent = {"Content-Type": kind, "Content-Length": str(len(raw))} | headers
            for name, text in sent.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(raw)

        def _stream(self, sse: Sse) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for block in sse.blocks:
                    self._chunk(block.encode())
                while sse.endless and not stopping.is_set():
                    self._chunk(b": beat\n\n")
                    time.sleep(0.005)
                if sse.cut:
                    self.close_connection = True
                else:
                    self._chunk(b"")
            finally:
                sse.ended.set()

        def _chunk(self, raw: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
            self.wfile.flush()

    server = _Server(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
