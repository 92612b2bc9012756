"""As much of the hub's HTTP API as a download needs: model info, HEAD and GET of files."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hub(repo: str, sha: str, files: dict[str, bytes], lfs: str = "") -> Iterator[str]:
    """lfs: the checksum it gives for every file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/{sha}"):
                siblings = [{"rfilename": n, "size": len(d)} for n, d in files.items()]
                if lfs:
                    sums = {"sha256": lfs, "pointerSize": 1}
                    siblings = [s | {"lfs": sums | {"size": s["size"]}} for s in siblings]
                info = {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings}
                self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
                return
            name = path.removeprefix(f"/{repo}/resolve/{sha}/")
            if name not in files:
                self.send_error(404)
                return
            etag = hashlib.sha256(files[name]).hexdigest()
            headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}
            self.send(files[name], headers, body)

        def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
