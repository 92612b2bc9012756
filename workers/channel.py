"""The pipe to the supervisor: private copies of fd 0 and 1, a writer thread, frames.

C libraries print to fd 1 as they please; it is turned to stderr before any of them is loaded, so
that a stray line cannot corrupt the wire. Who computes never waits for a full pipe: a frame is
written at once as far as there is room, and the rest by a thread of its own.
"""

from __future__ import annotations

import os
import queue
import socket
import stat
import threading
from collections.abc import Iterator
from typing import Any

from uml.protocol import frames, messages

#: Parsing in small slices keeps the interpreter's lock free for the decode loop.
_READ = 64 * 1024


class Channel:
    """Owner of the private descriptors."""

    def __init__(self) -> None:
        self._in, self._out = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        self._socket = _socket(self._out)
        self._queue: queue.SimpleQueue[bytes | memoryview | threading.Event] = queue.SimpleQueue()
        self._turn = threading.Lock()
        #: Frames that the writer thread has to write before any other.
        self._behind = 0
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, message: messages.Message) -> None:
        self.send_packed(messages.pack(message))

    def send_packed(self, frame: bytes) -> None:
        # Waking the writer for every token would cost the decode loop more than the writing.
        with self._turn:
            rest = frame if self._behind else self._write_now(frame)
            if rest:
                self._behind += 1
                self._queue.put(rest)

    def drain(self, timeout_s: float = 5.0) -> None:
        """Wait until everything queued so far is written (before an exit)."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout_s)

    def receive(self) -> Iterator[dict[str, Any]]:
        """Maps as they arrive, until EOF. Raises: ProtocolError."""
        decoder = frames.Decoder()
        while True:
            try:
                data = os.read(self._in, _READ)
            except OSError:
                return
            if not data:
                return
            yield from decoder.feed(data)

    def _write_now(self, frame: bytes) -> bytes | memoryview:
        """What there was no room for."""
        if self._socket is None:
            return frame
        try:
            written = self._socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return frame
        except OSError:
            os._exit(0)
        return memoryview(frame)[written:]

    def _write(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            view = memoryview(item)
            try:
                while view:
                    view = view[os.write(self._out, view) :]
            except OSError:
                os._exit(0)  # the supervisor is gone, and with it the reason to be here
            with self._turn:
                self._behind -= 1


def _socket(fd: int) -> socket.socket | None:
    """For writing without waiting; None where `fd` is a pipe: those cannot do it once only."""
    return socket.socket(fileno=fd) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None
