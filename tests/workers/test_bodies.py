"""Bodies in a worker: bytes beside the parameters, in a file without a name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.workers.workshop import Talk, worker
from uml.protocol import messages

MB = 1 << 20


def ask(w: Talk, request: str, body: bytes, **params: object) -> None:
    w.send(messages.Request(request, "transcribe", dict(params), body=True))
    pieces = [body[i : i + 256 * 1024] for i in range(0, len(body), 256 * 1024)] or [b""]
    for number, piece in enumerate(pieces, 1):
        w.send(messages.Part(request, piece, last=number == len(pieces)))


def heard(w: Talk, request: str) -> tuple[str, messages.Message]:
    text = ""
    while True:
        message = w.next(messages.Chunks, messages.Done, messages.Error)
        if isinstance(message, messages.Chunks):
            text += "".join(d["text"] for r, _, d in message.items if r == request)
        elif message.id == request:
            return text, message


def open_files(w: Talk) -> list[str]:
    links = Path(f"/proc/{w.process.pid}/fd").iterdir()
    return [t for t in (os.readlink(f) for f in links) if "(deleted)" in t]


def test_body_reaches_the_task_whole_and_leaves_no_file(tmp_path: Path) -> None:
    with worker(UML_SCRATCH=str(tmp_path)) as w:
        w.load()
        for number, size in enumerate((0, 1, 300_000, 5 * MB)):
            data = os.urandom(size)
            ask(w, f"r{number}", data)
            text, end = heard(w, f"r{number}")
            digest = hashlib.sha256(data).hexdigest()[:16]
            assert text.split() == ["heard", str(size), digest]
            assert isinstance(end, messages.Done) and end.result["language"] == "en"
        assert not open_files(w) and not list(tmp_path.iterdir())


def test_cancel_while_a_body_arrives_drops_it(tmp_path: Path) -> None:
    with worker(UML_SCRATCH=str(tmp_path)) as w:
        w.load()
        w.send(messages.Request("r1", "transcribe", {}, body=True), messages.Part("r1", b"x" * MB))
        w.send(messages.Cancel("r1"))
        assert w.next(messages.Done).finish == ["cancelled"]
        w.send(messages.Part("r1", b"late"))  # on its way when the cancel was sent
        ask(w, "r2", b"abc")
        assert heard(w, "r2")[0].startswith("heard 3 ")
        assert not open_files(w)


def test_body_that_cannot_be_kept_is_answered_and_the_worker_lives(tmp_path: Path) -> None:
    with worker(UML_SCRATCH=str(tmp_path / "missing")) as w:
        w.load()
        ask(w, "r1", b"abc")
        error = w.next(messages.Error)
        assert error.id == "r1" and error.error["code"] == "unavailable"
        w.ask("r2", "who", 1)
        assert isinstance(w.answer("r2")[1], messages.Done)
