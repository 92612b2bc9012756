"""From the bytes of tokens to text that may be shown: pure.

Two things hold bytes back: a character that is not complete, and the beginning of what may become
a stop string.
"""

from __future__ import annotations

from collections.abc import Iterable


class TextStream:
    """Bytes in, text out. stopped: a stop string came; what follows is ignored."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = [stop.encode() for stop in stops if stop]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = b""
        self.stopped = False
        #: Bytes that came out as text so far.
        self.taken = 0

    def feed(self, piece: bytes) -> str:
        """The text that is certain now, perhaps none."""
        if self.stopped:
            return ""
        data = self._held + piece if self._held else piece
        if self._stops:
            found = [at for at in map(data.find, self._stops) if at >= 0]
            if found:
                self.stopped = True
                self._held = b""
                return self._take(data[: min(found)])
            keep = self._may_begin_a_stop(data)
        else:
            keep = 0
        if not keep and data.isascii():
            self._held = b""
            self.taken += len(data)
            return data.decode("ascii")
        end = len(data) - keep
        end -= incomplete(data[:end])
        self._held = data[end:]
        return self._take(data[:end])

    def end(self) -> str:
        """What was held back; a character that never became complete is left out."""
        data, self._held = self._held, b""
        return self._take(data[: len(data) - incomplete(data)])

    def _take(self, data: bytes) -> str:
        self.taken += len(data)
        return data.decode("utf-8", "replace")

    def _may_begin_a_stop(self, data: bytes) -> int:
        for length in range(min(self._longest - 1, len(data)), 0, -1):
            tail = data[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


def incomplete(data: bytes) -> int:
    """Bytes at the end of `data` that begin a UTF-8 character and do not complete it."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:  # a leading byte: how many should follow it?
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 0
            return back if back < size else 0
    return 0
