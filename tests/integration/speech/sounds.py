"""Sound for tests: spoken, silent, in every container, and measured again.

fixtures/jfk.flac: from John F. Kennedy's inaugural address, 1961, in the public domain.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import av
import numpy as np

JFK = (Path(__file__).resolve().parents[2] / "fixtures/jfk.flac").read_bytes()
_SAID = "your country can do for you ask what you can do for your country"
JFK_WORDS = f"and so my fellow americans ask not what {_SAID}".split()
RATE = 16000
#: Name -> (ffmpeg's muxer, codec, rate).
CONTAINERS = {
    "wav": ("wav", "pcm_s16le", 16000),
    "mp3": ("mp3", "libmp3lame", 16000),
    "m4a": ("ipod", "aac", 16000),
    "ogg": ("ogg", "libopus", 48000),
    "webm": ("webm", "libopus", 48000),
    "flac": ("flac", "flac", 16000),
    "mp4": ("mp4", "aac", 44100),
}
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "She sells fresh bread and butter in the market every morning.",
    "Our train leaves the station at seven o'clock tonight.",
    "Please remember to close the window before you go to bed.",
    "The children played in the garden until it began to rain.",
    "He wrote a long letter to his old friend in London.",
    "There is a small river behind the house where we used to swim.",
    "The doctor told him to drink more water and to walk every day.",
    "We have never seen such a beautiful sunset over the sea.",
    "My brother bought a new car because the old one was broken.",
]


def samples(data: bytes) -> np.ndarray[Any, Any]:
    """Any file as 16 kHz mono int16."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    found = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(audio=0):
            frame.pts = None
            found += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        found += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(found)


def seconds(data: bytes) -> float:
    return len(samples(data)) / RATE


def file(sound: np.ndarray[Any, Any], kind: str = "wav", rate: int = RATE) -> bytes:
    """int16 mono samples as a file."""
    muxer, codec, out_rate = CONTAINERS[kind]
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=out_rate, layout="mono")
        for start in range(0, len(sound), rate):
            frame = av.AudioFrame.from_ndarray(
                sound[start : start + rate].reshape(1, -1), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = rate, None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def silence(length_s: float) -> np.ndarray[Any, Any]:
    return np.zeros(int(length_s * RATE), np.int16)


def video() -> bytes:
    """A film without sound."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            picture = np.zeros((64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split()


def errors(said: list[str], heard: list[str]) -> int:
    """Words to insert, delete or replace (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
