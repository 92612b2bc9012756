"""A small file server on loopback: ranges, ETags, breaking off, a package index."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Site:
    """files: path -> bytes. break_after: bytes after which a response stops. slow_s: per 64 KB.
    user: "name:password" that is asked for. redirects: path -> address. authorized: path -> what
    a request for it said of its user."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.break_after: int | None = None
        self.slow_s = 0.0
        self.ranges: list[str | None] = []
        self.user = ""
        self.redirects: dict[str, str] = {}
        self.authorized: dict[str, str | None] = {}
        self.url = ""


@contextmanager
def serve() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = site.files.get(self.path)
            given = self.headers.get("Authorization")
            site.authorized[self.path] = given
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if site.user and given != f"Basic {base64.b64encode(site.user.encode()).decode()}":
                self.send_error(401)
                return
            site.ranges.append(self.headers.get("Range"))
            if data is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            start = 0
            asked = self.headers.get("Range")
            if asked and self.headers.get("If-Range") in (None, tag):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", tag)
            self.send_header("Content-Type", site.kinds.get(self.path, "application/octet-stream"))
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = (
                len(data) if site.break_after is None else min(len(data), start + site.break_after)
            )
            try:
                for at in range(start, end, 65536):
                    self.wfile.write(data[at : min(end, at + 65536)])
                    time.sleep(site.slow_s)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client was killed
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
