"""Bodies of the audio endpoints, checked. Source: OpenAI API reference, audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Body, Transcribe
from uml.supervisor.api import transcripts
from uml.supervisor.api.fields import Fields, wrong
from uml.supervisor.api.languages import code_of

#: Format -> media type of speech.
SOUNDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
#: Characters of one text.
_MAX_TEXT = 1_000_000
#: Seconds, where the configuration sets no limit.
_NO_LIMIT_S = 1e9
_GRANULARITIES = ("word", "segment")


@dataclass(frozen=True)
class Transcription:
    """form: of `transcripts.FORMATS`. granularities, logprobs: what the answer shall have."""

    task: Transcribe
    form: str
    granularities: Sequence[str]
    logprobs: bool
    stream: bool


@dataclass(frozen=True)
class Speech:
    """voice: as the client names it. events: as SSE, else as bytes of `format`."""

    text: str
    voice: str | None
    speed: float
    format: str
    events: bool


def read_transcription(
    form: Mapping[str, Any], body: Body, limit_s: float, *, translate: bool
) -> Transcription:
    """body: the file's bytes. limit_s: longer recordings are refused; none below 0.

    Raises: BadRequest.
    """
    fields = Fields(form)
    if not isinstance(fields.raw("file")[1], str):
        raise BadRequest("'file' is missing: the audio is that part of the form", param="file")
    if not body.size:
        raise BadRequest("'file' is empty", param="file")
    shape = fields.choice("response_format", *transcripts.FORMATS) or "json"
    streams = fields.flag("stream") or False
    if streams and shape not in ("json", "text"):
        raise BadRequest(f"'stream' goes with json or text, not with {shape}", param="stream")
    wanted = _list(fields, "timestamp_granularities", _GRANULARITIES)
    if wanted and shape != "verbose_json":
        raise BadRequest(
            "'timestamp_granularities' needs response_format verbose_json",
            param="timestamp_granularities",
        )
    logprobs = "logprobs" in _list(fields, "include", ("logprobs",))
    if logprobs and shape != "json":
        raise BadRequest("'include' of logprobs needs response_format json", param="include")
    task = Transcribe(
        audio=body,
        language=None if translate else read_language(fields),
        prompt=fields.text("prompt", limit=10_000) or None,
        temperature=fields.number("temperature", low=0, high=1) or 0.0,
        translate=translate,
        words="word" in wanted,
        details=shape == "verbose_json" or logprobs,
        limit_s=limit_s if limit_s >= 0 else _NO_LIMIT_S,
    )
    return Transcription(task, shape, wanted or ["segment"], logprobs, streams)


def read_language(fields: Fields) -> str | None:
    """A code, None = to be found out. Raises: BadRequest."""
    text = fields.text("language", limit=40)
    if not text or text.strip().lower() == "auto":
        return None
    code = code_of(text)
    if code is None:
        raise BadRequest(
            f"'language' {text!r} is none that is known: give an ISO 639-1 code like en or de",
            param="language",
        )
    return code


def read_speech(body: Mapping[str, Any]) -> Speech:
    """Raises: BadRequest."""
    fields = Fields(body)
    text = fields.required_text("input")
    if len(text) > _MAX_TEXT:
        raise BadRequest(f"'input' is longer than {_MAX_TEXT} characters", param="input")
    if not text.strip():
        raise wrong("input", "a text that is not empty", "")
    speed = fields.number("speed", low=0.25, high=4.0)
    return Speech(
        text=text,
        voice=_voice(fields),
        speed=1.0 if speed is None else speed,
        format=fields.choice("response_format", *SOUNDS) or "mp3",
        events=fields.choice("stream_format", "audio", "sse") == "sse",
    )


def _voice(fields: Fields) -> str | None:
    """A name, or an object with one as its id."""
    param, value = fields.raw("voice")
    if isinstance(value, dict):
        return str(Fields(value, "voice").required_text("id"))
    if value is not None and not isinstance(value, str):
        raise wrong(param, "a voice's name", value)
    return value or None


def _list(fields: Fields, name: str, words: tuple[str, ...]) -> list[str]:
    """A field that may be one word or several. Raises: BadRequest."""
    param, value = fields.raw(name)
    found = value if isinstance(value, list) else [] if value in (None, "") else [value]
    for word in found:
        if word not in words:
            raise wrong(param, "one or more of " + ", ".join(words), word)
    return found
