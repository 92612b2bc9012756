"""Speech that is still going on: what of it is to be heard next, and what of that is final. Pure.

The sound since the last final text is heard again and again while it grows; text becomes final when
the speaker pauses, or when as much is waiting as the model hears at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds that are heard at once at most: what a Whisper model takes, less a little.
_WINDOW_S = 28.0
#: Less new sound than this is not worth hearing.
_STEP_S = 0.6
_SHORTEST_S = 0.2
#: So long a silence at its end makes a text final.
_PAUSE_S = 0.7
#: Kept of what is dropped as silence: the beginning of a word may be in it.
_LEAD_S = 0.3
#: Louder than this (of 32768) is a sound, and than this share of the loudest.
_SOUND, _SHARE = 300, 0.08
#: More than this must not wait.
MOST_S = 600.0


@dataclass(frozen=True)
class Told:
    """text from start to end, in seconds since the beginning. final: it will not change."""

    text: str
    start: float
    end: float
    final: bool


class Utterances:
    """s16le mono of `rate` samples a second comes in with `feed`; `window` says what is to be heard
    next, and `take` gets what was heard of it."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._data = bytearray()
        self._dropped = 0
        self._heard = 0
        self._partial = ""
        self._ended = False

    @property
    def waiting_s(self) -> float:
        return self._seconds(len(self._data))

    @property
    def duration_s(self) -> float:
        return self._seconds(self._dropped + len(self._data))

    @property
    def done(self) -> bool:
        """It has ended, and everything was heard."""
        return self._ended and not self._data

    def feed(self, data: bytes) -> None:
        self._data += data

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        del self._data[len(self._data) // 2 * 2 :]

    def window(self) -> bytes | None:
        """What is to be heard now; None: nothing yet."""
        size = min(len(self._data) // 2 * 2, self._bytes(_WINDOW_S))
        if not self._is_sound(0, size):
            self._drop(size if self._ended else max(0, size - self._bytes(_LEAD_S)))
            return None
        if self._seconds(size) < _SHORTEST_S:
            if self._ended:
                self._drop(size)
            return None
        full = size >= self._bytes(_WINDOW_S)
        grown = size - self._heard
        little = grown < self._bytes(_STEP_S) and not full and not self._ended
        # A pause may not have been one yet when it was last heard.
        if little and not (grown and self._partial and self._pauses(size)):
            return None
        self._heard = size
        return bytes(self._data[:size])

    def take(self, segments: Sequence[Mapping[str, Any]]) -> list[Told]:
        """segments: heard in the last `window`, with text, start and end."""
        size, base = self._heard, self._seconds(self._dropped)
        last = self._ended and size >= len(self._data)
        full = size >= self._bytes(_WINDOW_S)
        self._partial = ""
        final: Sequence[Mapping[str, Any]] = ()
        keep: Sequence[Mapping[str, Any]] = ()
        cut = 0
        if last or self._pauses(size):
            final, cut = segments, size
        elif full and len(segments) > 1:
            final, keep = segments[:-1], segments[-1:]
            cut = min(size, self._bytes(float(final[-1]["end"])))
        elif full:
            final, cut = segments, size
        else:
            keep = segments
        told = [self._told(s, base, final=True) for s in final if str(s["text"]).strip()]
        if keep:
            self._partial = "".join(str(s["text"]) for s in keep).strip()
        if self._partial:
            start, end = float(keep[0]["start"]), float(keep[-1]["end"])
            told.append(Told(self._partial, base + start, base + end, False))
        self._drop(cut)
        return told

    def _told(self, segment: Mapping[str, Any], base: float, *, final: bool) -> Told:
        start, end = float(segment["start"]), float(segment["end"])
        return Told(str(segment["text"]).strip(), base + start, base + end, final)

    def _drop(self, size: int) -> None:
        size = size // 2 * 2
        del self._data[:size]
        self._dropped += size
        self._heard = max(0, self._heard - size)

    def _pauses(self, size: int) -> bool:
        pause = self._bytes(_PAUSE_S)
        return size > pause and not self._is_sound(size - pause, size)

    def _is_sound(self, start: int, end: int) -> bool:
        return _loudest(self._data, start, end) > max(
            _SOUND, _SHARE * _loudest(self._data, 0, end) if start else 0
        )

    def _bytes(self, seconds: float) -> int:
        return int(seconds * self.rate) * 2

    def _seconds(self, size: int) -> float:
        return size / 2 / self.rate


def _loudest(data: bytearray, start: int, end: int) -> int:
    values = array("h", bytes(data[start:end]))
    return max(max(values), -min(values)) if values else 0
