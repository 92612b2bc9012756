"""A real voice behind the real address: what is written is heard."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import openai
import pytest

from tests.integration.serving import TTS
from tests.integration.speech import sounds
from tests.integration.speech.sounds import SENTENCES, words
from tests.integration.speech.talking import hear, say

pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]


def test_official_client_speaks_in_all_six_forms(official: Any) -> None:
    lengths = {}
    for shape in ("mp3", "opus", "aac", "flac", "wav"):
        data = say(official, SENTENCES[0], shape)
        lengths[shape] = sounds.seconds(data)
    raw = say(official, SENTENCES[0], "pcm")
    lengths["pcm"] = len(raw) / 2 / 24000
    assert max(lengths.values()) < 1.25 * min(lengths.values()), lengths
    assert 2 < lengths["wav"] < 5


def test_speed_is_that_of_speech(official: Any) -> None:
    slow, fast = (sounds.seconds(say(official, SENTENCES[1], speed=s)) for s in (0.5, 2.0))
    assert 2.5 < slow / fast < 6


def test_official_client_streams_sound_and_events(official: Any) -> None:
    text = " ".join(SENTENCES)
    streaming = official.audio.speech.with_streaming_response
    with streaming.create(model=TTS, voice="alloy", input=text, response_format="pcm") as answer:
        assert answer.headers["content-type"].startswith("audio/pcm")
        pieces = list(answer.iter_bytes(4096))
    assert len(b"".join(pieces)) / 48000 > 20
    with streaming.create(
        model=TTS, voice=TTS, input=SENTENCES[0], stream_format="sse", response_format="wav"
    ) as answer:
        events = [json.loads(li[6:]) for li in answer.iter_lines() if li.startswith("data: ")]
    sound = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert events[-1]["type"] == "speech.audio.done"
    assert sounds.seconds(sound) == pytest.approx(events[-1]["usage"]["seconds"], abs=0.1)


def first_byte(official: Any, text: str) -> tuple[float, float]:
    """Seconds until the first sound, and until the last."""
    started, first = time.monotonic(), 0.0
    with official.audio.speech.with_streaming_response.create(
        model=TTS, voice=TTS, input=text, response_format="pcm"
    ) as answer:
        for _ in answer.iter_bytes(1024):
            first = first or time.monotonic() - started
    return first, time.monotonic() - started


def test_first_sound_of_a_long_text_comes_after_its_first_sentence(official: Any) -> None:
    long = " ".join(SENTENCES * 5)
    alone = min(first_byte(official, SENTENCES[0])[1] for _ in range(5))
    firsts = [first_byte(official, long) for _ in range(3)]
    # The bar is 1.2 and is measured by the benchmarks; a busy machine gets some room here.
    assert min(f for f, _ in firsts) < 1.6 * alone + 0.1
    assert all(first < 0.2 * whole for first, whole in firsts)


@pytest.mark.parametrize(
    ("text", "about_s"),
    [
        ("word " * 400, 120),
        ("no full stop, but commas, " * 60, 100),
        ("Dr. Smith paid $3.50 on Jan. 5th, 1999, i.e. not much.", 6),
        ("Ünïcödé — “quotes” and … dots; 数字 too.", 4),
        ("One.\n\nTwo!\n\nThree?", 2),
        ("A" * 300, 20),
    ],
    ids=["no end", "commas", "abbreviations", "signs", "paragraphs", "one word"],
)
def test_text_of_any_kind_is_spoken(official: Any, text: str, about_s: float) -> None:
    assert about_s / 4 < len(say(official, text, "pcm")) / 48000 < about_s * 4


def test_text_without_a_word_is_a_400(official: Any) -> None:
    for text in ("...", "\U0001f600"):
        try:
            assert say(official, text, "pcm")  # espeak may have a name for it
        except openai.BadRequestError as e:
            assert "spoken" in str(e)


def test_round_trip_has_few_wrong_words(official: Any) -> None:
    wrong = total = 0
    for sentence in SENTENCES:
        heard = words(hear(official, say(official, sentence, "wav"), "a.wav").text)
        wrong += sounds.errors(words(sentence), heard)
        total += len(words(sentence))
    assert wrong / total <= 0.10, f"word error rate {wrong / total:.1%}"
