"""Real recordings behind the real address: what is said is read."""

from __future__ import annotations

import io
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pysubs2
import pytest

from tests.integration.serving import STT, Serving, serving, until
from tests.integration.speech import sounds
from tests.integration.speech.sounds import JFK, JFK_WORDS, SENTENCES, words
from tests.integration.speech.talking import hear, say

pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]
MB = 1 << 20


def test_official_client_hears_in_all_five_forms(official: Any) -> None:
    assert words(hear(official).text) == JFK_WORDS
    assert words(hear(official, response_format="text")) == JFK_WORDS
    for form in ("srt", "vtt"):
        cues = pysubs2.SSAFile.from_string(hear(official, response_format=form), format_=form)
        assert words(" ".join(c.plaintext for c in cues)) == JFK_WORDS
        assert cues[0].start == 0 and 10_000 <= cues[-1].end <= 11_500
    told = hear(
        official,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
    )
    assert words(told.text) == JFK_WORDS and told.language == "english"
    assert told.duration == pytest.approx(11.0, abs=0.1)
    assert words(" ".join(w.word for w in told.words)) == JFK_WORDS
    starts = [w.start for w in told.words]
    assert starts == sorted(starts) and all(0 <= w.start <= w.end <= 11.5 for w in told.words)
    assert -1 < told.segments[0].avg_logprob < 0
    assert told.segments[0].compression_ratio > 0.5


def test_official_client_hears_as_it_comes(official: Any) -> None:
    events = list(hear(official, stream=True, include=["logprobs"]))
    assert [e.type for e in events][-1] == "transcript.text.done"
    deltas = [e.delta for e in events[:-1]]
    assert len(deltas) >= 2 and "".join(deltas).strip() == events[-1].text
    assert words(events[-1].text) == JFK_WORDS
    assert events[-1].logprobs[0].logprob < 0


@pytest.mark.parametrize("kind", sounds.CONTAINERS)
def test_any_container_is_heard(official: Any, kind: str) -> None:
    data = sounds.file(sounds.samples(JFK), kind)
    heard = words(hear(official, data, f"a.{kind}").text)
    assert sounds.errors(JFK_WORDS, heard) <= 1, heard


def test_stereo_and_other_rates_are_heard(official: Any) -> None:
    mono = np.repeat(sounds.samples(JFK), 3)  # 48 kHz
    raw = np.stack([mono, mono], 1).astype("<i2").tobytes()
    data = wav(raw, rate=48000, channels=2)
    assert sounds.errors(JFK_WORDS, words(hear(official, data, "a.wav").text)) <= 1


def wav(raw: bytes, rate: int = 16000, channels: int = 1, said: int | None = None) -> bytes:
    """said: the length its header gives."""
    size = len(raw) if said is None else said
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, 2 * channels, 16
    )
    riff = min(size + 36, 0xFFFFFFFF)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + raw


def test_wav_of_a_program_that_did_not_know_its_length_is_heard(official: Any) -> None:
    raw = sounds.samples(JFK).tobytes()
    for said in (0xFFFFFFFF, 0):
        assert words(hear(official, wav(raw, said=said), "a.wav").text) == JFK_WORDS


def test_prompt_and_temperature_reach_the_model(official: Any) -> None:
    warm = hear(official, prompt="A speech of President Kennedy:", temperature=0.1)
    assert sounds.errors(JFK_WORDS, words(warm.text)) <= 3


@pytest.mark.filterwarnings("ignore:deprecated")
def test_english_model_takes_the_path_of_translation_and_detection(official: Any) -> None:
    """Whether it translates or detects cannot be seen with a model that knows English alone."""
    answer = official.audio.translations.create(
        model=STT, file=("a.flac", io.BytesIO(JFK)), response_format="verbose_json"
    )
    assert words(answer.text) == JFK_WORDS and answer.language == "english"


SILENT = sounds.file(sounds.silence(3))
SHORT = sounds.file(sounds.silence(0.05))
WRONG = {
    "nothing": (b"", "empty"),
    "no sound at all": (b"This is a text, and no sound. " * 100, "no audio that can be read"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(5000), "no audio|only a picture|no sound"),
    "a film without sound": (sounds.video(), "only a picture"),
    "too short": (SHORT, "shorter than 0.1"),
    "cut off": (sounds.file(sounds.samples(JFK), "mp4")[:9000], "no audio|cut off|no sound"),
    "a header alone": (JFK[:60], "no audio|no sound|corrupt|cut off"),
    "a header that lies about the length": (
        wav(sounds.samples(JFK).tobytes(), said=400_000_000),
        "cut off",
    ),
    "a header that lies about the rate": (
        wav(bytes(20000), rate=4_000_000_000),
        "no audio|accepted",
    ),
    "a header of many channels": (wav(bytes(99999), channels=999), "channels|no audio|corrupt"),
    "a playlist of somebody's files": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "no audio that can be read",
    ),
    "a list of files to join": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no audio"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_heard_is_a_400_that_says_why(official: Any, what: str) -> None:
    data, why = WRONG[what]
    with pytest.raises(openai.BadRequestError, match=why) as caught:
        hear(official, data)
    assert caught.value.param == "file"
    assert words(hear(official).text) == JFK_WORDS, "and the next one is heard"


def test_silence_is_heard_as_nothing(official: Any) -> None:
    told = hear(official, SILENT, response_format="verbose_json")
    assert (told.text, told.segments) == ("", []) and told.duration == pytest.approx(3, abs=0.1)


def test_language_the_model_has_not_and_one_nobody_has(official: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="English alone"):
        hear(official, language="de")
    with pytest.raises(openai.BadRequestError, match="ISO 639-1"):
        hear(official, language="xx")


def test_recording_that_is_too_long_is_refused_before_it_is_worked_on(
    tmp_path: Path, speech: None
) -> None:
    with serving(tmp_path, UML_MAX_AUDIO="1m") as short:
        with openai.OpenAI(base_url=f"{short.url}/v1", api_key="x", max_retries=0) as client:
            # Small files that are long: an hour of silence in some kilobytes.
            for kind in ("ogg", "flac", "mp3"):
                bomb = sounds.file(sounds.silence(3600), kind)
                started = time.monotonic()
                with pytest.raises(openai.APIStatusError, match="max_audio") as caught:
                    hear(client, bomb)
                assert caught.value.status_code == 413
                assert time.monotonic() - started < 20
            assert words(hear(client).text) == JFK_WORDS


# --- long, large, many ---------------------------------------------------------------------


def test_long_recording_is_worked_on_in_order_and_cancelled_within_a_second(
    served: Serving, official: Any
) -> None:
    long = np.concatenate([sounds.samples(JFK), sounds.silence(1)] * 12)
    data = sounds.file(long, "mp3")
    told = hear(official, data, response_format="verbose_json")
    assert told.duration == pytest.approx(144, abs=1)
    starts = [s.start for s in told.segments]
    assert starts == sorted(starts)
    assert sounds.errors(JFK_WORDS * 12, words(told.text)) <= len(JFK_WORDS)
    stream = hear(official, data, stream=True)
    progress = [next(iter(stream)).model_extra["progress"] for _ in range(3)]
    assert progress == sorted(progress) and 0 < progress[-1] < 0.7
    stream.close()
    left = time.monotonic()
    until(lambda: not any(w["busy"] for w in served.client.status()["workers"]), 10)
    assert time.monotonic() - left < 1.6  # a second, and the poll


def peak(process: psutil.Process, stop: threading.Event, found: list[int]) -> None:
    while not stop.wait(0.01):
        found.append(process.memory_info().rss)


@pytest.mark.parametrize("what", ["25 MB", "one hour"])
def test_upload_costs_the_supervisor_less_than_40_mb(
    served: Serving, official: Any, what: str
) -> None:
    sound = sounds.silence(3600 if what == "one hour" else 25 * MB / 2 / sounds.RATE)
    middle = len(sound) // 2
    sound[middle : middle + len(sounds.samples(JFK))] = sounds.samples(JFK)
    data = wav(sound.tobytes())
    assert len(data) >= 25 * MB
    process, stop, found = psutil.Process(served.process.pid), threading.Event(), list[int]()
    before = process.memory_info().rss
    watcher = threading.Thread(target=peak, args=(process, stop, found))
    watcher.start()
    try:
        text = hear(official, data, "a.wav").text
    finally:
        stop.set()
        watcher.join()
    assert sounds.errors(JFK_WORDS, words(text)) <= 2
    assert max(found) - before < 40 * MB, f"{(max(found) - before) / MB:.0f} MB"


def test_many_are_served_at_once(official: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        heard = [pool.submit(hear, official) for _ in range(4)]
        said = [pool.submit(say, official, SENTENCES[i]) for i in range(4)]
        assert all(words(h.result().text) == JFK_WORDS for h in heard)
        assert all(sounds.seconds(s.result()) > 1.5 for s in said)
