"""Hearing and speaking through the official client."""

from __future__ import annotations

import io
from typing import Any

from tests.integration.serving import STT, TTS
from tests.integration.speech.sounds import JFK


def hear(official: Any, data: bytes = JFK, name: str = "a.flac", **fields: Any) -> Any:
    return official.audio.transcriptions.create(model=STT, file=(name, io.BytesIO(data)), **fields)


def say(official: Any, text: str, shape: str = "mp3", **fields: Any) -> bytes:
    answer = official.audio.speech.create(
        model=TTS, voice=TTS, input=text, response_format=shape, **fields
    )
    return bytes(answer.content)
