"""Samples to a file that is sent while it is made."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.logging
import numpy as np

#: What OpenAI's "pcm" is: s16le mono of this rate.
PCM_RATE = 24000
#: Format -> (ffmpeg's muxer, codec, rate or None for the voice's own, options of the muxer).
_FORMATS: dict[str, tuple[str, str, int | None, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", None, {"write_xing": "0", "id3v2_version": "0"}),
    "opus": ("ogg", "libopus", 48000, {"page_duration": "100000"}),
    "aac": ("adts", "aac", None, {}),
    "flac": ("flac", "flac", None, {}),
    "wav": ("wav", "pcm_s16le", None, {}),
}
_BITS_PER_SECOND = {"mp3": 64000, "opus": 48000, "aac": 64000}
FORMATS = (*_FORMATS, "pcm")

av.logging.set_level(av.logging.PANIC)


class Encoder:
    """rate: of the samples that are given, mono. What `write` and `end` return, joined, is a file
    of `format`."""

    def __init__(self, format: str, rate: int) -> None:
        self._rate, self._pts = rate, 0
        self._out = _Collected()
        self._container: Any = None
        self._resampler: Any = None
        if format == "pcm":
            if rate != PCM_RATE:
                self._resampler = av.AudioResampler(format="s16", layout="mono", rate=PCM_RATE)
            return
        muxer, codec, wanted, options = _FORMATS[format]
        self._container = av.open(
            self._out, "w", format=muxer, options={"flush_packets": "1", **options}
        )
        self._stream = self._container.add_stream(codec, rate=wanted or rate, layout="mono")
        if format in _BITS_PER_SECOND:
            self._stream.bit_rate = _BITS_PER_SECOND[format]

    def write(self, samples: np.ndarray[Any, Any]) -> bytes:
        """samples: int16. The bytes that are ready now; others follow."""
        if not len(samples):
            return b""
        if self._container is None and self._resampler is None:
            return samples.astype("<i2").tobytes()
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = self._rate
        frame.pts, self._pts = self._pts, self._pts + len(samples)
        frame.time_base = Fraction(1, self._rate)
        if self._container is None:
            return _bytes(self._resampler.resample(frame))
        self._container.mux(self._stream.encode(frame))
        return self._out.take()

    def end(self) -> bytes:
        """The rest. Nothing more is written."""
        if self._container is None:
            return _bytes(self._resampler.resample(None)) if self._resampler else b""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.take()

    def close(self) -> None:
        """For one that does not come to its end."""
        if self._container is not None:
            self._container.close()


class _Collected:
    """A file that can only be written to; its bytes are taken away as they come."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data


def _bytes(frames: Any) -> bytes:
    return b"".join(f.to_ndarray().astype("<i2").tobytes() for f in frames if f is not None)
