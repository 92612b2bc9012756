"""A whole recording, window by window.

As OpenAI's own program does it: a window of 30 seconds is heard, and the next one begins where the
last segment in it ended, with what was said as its prompt. Source: openai/whisper, transcribe.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uml.protocol.errors import BadRequest, Cancelled
from uml.protocol.tasks import Transcribe
from uml.workers.backends.whisper_cpp.model import Heard, Model, Token, Wishes, check_language
from uml.workers.sound import decode
from uml.workers.sound.decode import RATE

_WINDOW = 30 * RATE
#: Shorter than this the library hears nothing; what is left at the end is let go.
_SHORTEST = RATE // 10
#: What Whisper writes where it hears nobody.
_NOTHING_SAID = ("", "[BLANK_AUDIO]")
#: A window whose loudest sample is below this (-60 dB) is silence; Whisper would invent words.
_SILENCE = 1e-3
#: Text that compresses better than this goes round in circles, and is no prompt for what follows.
#: Source: openai/whisper's compression_ratio_threshold.
_CIRCLES = 2.4
_PAST = 224

_Delta = dict[str, Any]


def transcribe(
    model: Model, task: Transcribe, stopped: Callable[[], bool]
) -> Generator[_Delta, None, dict[str, Any]]:
    """A delta per segment; see `tasks.Transcribe`. Raises: BadRequest, TooLarge."""
    language = check_language(model, task.language)
    if task.rate:
        total = task.audio.seek(0, 2) / 2 / task.rate
        task.audio.seek(0)
        sound = decode.bare(task.audio, task.rate, task.limit_s, stopped)
    else:
        total = decode.length_of(task.audio, task.limit_s)
        sound = decode.samples(task.audio, task.limit_s, stopped)
    tape = Tape(sound)
    past: list[int] = []
    number = 0
    while not stopped():
        window = tape.window()
        if len(window) < _SHORTEST:
            if not tape.position:
                raise BadRequest("the audio is shorter than 0.1 seconds", param="file")
            break
        if np.max(np.abs(window)) < _SILENCE:
            tape.move(len(window))
            continue
        wishes = Wishes(
            language,
            task.translate and model.multilingual,
            task.temperature,
            times=task.words,
            prompt=None if past else task.prompt,
            past=past,
        )
        try:
            heard, found = model.hear(window, wishes, stopped)
        except Cancelled:
            break
        language = found
        begin = tape.position / RATE
        for segment in heard:
            if segment.text.strip() not in _NOTHING_SAID:
                yield _delta(segment, number, begin, len(window) / RATE, total, task)
                number += 1
        past = _remember(past, heard)
        tape.move(_heard_until(heard, len(window)))
    return {
        "language": None if language == "auto" else language,
        "duration": round(tape.heard_of / RATE, 3),
    }


@dataclass
class Tape:
    """The sound as it is decoded, of which only a window is kept. position: samples before it."""

    sound: Iterator[np.ndarray[Any, Any]]
    position: int = 0
    heard_of: int = 0
    _pieces: list[np.ndarray[Any, Any]] = field(default_factory=list)
    _held: int = 0

    def window(self) -> np.ndarray[Any, Any]:
        """The next 30 seconds, or what is left."""
        while self._held < _WINDOW:
            piece = next(self.sound, None)
            if piece is None:
                break
            self._pieces.append(piece)
            self._held += len(piece)
            self.heard_of += len(piece)
        whole = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        self._pieces = [whole]
        return whole[:_WINDOW]

    def move(self, count: int) -> None:
        self._pieces = [self._pieces[0][count:]]
        self._held -= count
        self.position += count


def _heard_until(heard: list[Heard], length: int) -> int:
    """Samples of the window that need not be heard again."""
    if length < _WINDOW:
        end = int(heard[-1].end * RATE) if heard else length
        # A second of rest is no sentence. Source: whisper.cpp, whisper_full_with_state.
        return length if length - end < RATE else max(end, RATE)
    end = int(heard[-1].end * RATE) if heard else length
    return min(length, end) if end >= RATE else length


def _remember(past: list[int], heard: list[Heard]) -> list[int]:
    """Ids of text tokens that the next window's prompt is made of."""
    text = "".join(segment.text for segment in heard)
    if not text.strip() or _compression(text) > _CIRCLES:
        return []
    return [*past, *(t.id for segment in heard for t in segment.tokens)][-_PAST:]


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _delta(
    segment: Heard, number: int, begin: float, length: float, total: float, task: Transcribe
) -> _Delta:
    start, end = begin + segment.start, begin + min(segment.end, length)
    told: _Delta = {"id": number, "start": round(start, 2), "end": round(max(start, end), 2)}
    if task.words:
        told["words"] = list(words(segment.tokens, begin))
    if task.details:
        told |= {
            "seek": round(begin * 100),
            "tokens": segment.all_tokens,
            "temperature": task.temperature,
            "avg_logprob": round(segment.logprob, 4),
            "compression_ratio": round(_compression(segment.text), 4),
            "logprobs": [
                {
                    "token": t.data.decode("utf-8", "replace"),
                    "logprob": round(t.logprob, 4),
                    "bytes": list(t.data),
                }
                for t in segment.tokens
            ],
        }
    progress = round(min(1.0, end / total), 3) if total else None
    return {"text": segment.text, "segment": told, "progress": progress}


def words(tokens: list[Token], begin: float) -> Iterator[dict[str, Any]]:
    """Tokens joined to words, each of which begins with a space."""
    group: list[Token] = []
    for token in tokens:
        if group and token.data.startswith(b" "):
            yield _word(group, begin)
            group = []
        group.append(token)
    if group:
        yield _word(group, begin)


def _word(group: list[Token], begin: float) -> dict[str, Any]:
    text = b"".join(t.data for t in group).decode("utf-8", "replace").strip()
    start = begin + group[0].start
    return {
        "word": text,
        "start": round(start, 2),
        "end": round(max(start, begin + group[-1].end), 2),
    }
