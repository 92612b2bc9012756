"""What was heard, in the forms it can be asked for: pure.

Source: OpenAI API reference (transcription objects); the WebVTT standard; SubRip as players
read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uml.supervisor.api.answers import dump
from uml.supervisor.api.languages import NAMES

#: Name -> media type.
FORMATS = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}


@dataclass
class Transcript:
    """segments: as the worker tells them, with their text. duration: seconds of the recording."""

    segments: list[dict[str, Any]] = field(default_factory=list)
    language: str | None = None
    duration: float = 0.0

    @property
    def text(self) -> str:
        return "".join(s["text"] for s in self.segments).strip()

    @property
    def usage(self) -> dict[str, Any]:
        return {"type": "duration", "seconds": math.ceil(self.duration)}


def render(
    heard: Transcript,
    form: str,
    *,
    task: str = "transcribe",
    granularities: Sequence[str] = ("segment",),
    logprobs: bool = False,
) -> str:
    """The body. form: of `FORMATS`."""
    if form == "text":
        return heard.text + "\n"
    if form == "srt":
        return "".join(_srt(i, s) for i, s in enumerate(heard.segments, 1))
    if form == "vtt":
        return "WEBVTT\n\n" + "".join(_vtt(s) for s in heard.segments)
    if form == "verbose_json":
        return dump(_verbose(heard, task, granularities))
    answer: dict[str, Any] = {"text": heard.text}
    if logprobs:
        answer["logprobs"] = logprobs_of(heard)
    return dump(answer | {"usage": heard.usage})


def logprobs_of(heard: Transcript) -> list[dict[str, Any]]:
    return [token for s in heard.segments for token in s.get("logprobs") or ()]


def _verbose(heard: Transcript, task: str, granularities: Sequence[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "task": task,
        "language": NAMES.get(heard.language or "", heard.language),
        "duration": heard.duration,
        "text": heard.text,
    }
    if "segment" in granularities:
        answer["segments"] = [_segment(s) for s in heard.segments]
    if "word" in granularities:
        answer["words"] = [w for s in heard.segments for w in s.get("words") or ()]
    return answer | {"usage": heard.usage}


def _segment(said: Mapping[str, Any]) -> dict[str, Any]:
    """no_speech_prob: the library does not tell it."""
    keys = (
        *("id", "seek", "start", "end", "text", "tokens", "temperature"),
        *("avg_logprob", "compression_ratio", "no_speech_prob"),
    )
    return {key: said.get(key) for key in keys}


def _srt(number: int, segment: Mapping[str, Any]) -> str:
    start, end = _clock(segment["start"], ","), _clock(segment["end"], ",")
    return f"{number}\n{start} --> {end}\n{_line(segment['text'])}\n\n"


def _vtt(segment: Mapping[str, Any]) -> str:
    text = _line(segment["text"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(segment['start'], '.')} --> {_clock(segment['end'], '.')}\n{text}\n\n"


def _line(text: str) -> str:
    """An empty line would end the cue."""
    return " ".join(text.split())


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
