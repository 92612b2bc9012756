"""Real speech models behind the real address: what is said is heard, and the other way round."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pysubs2
import pytest

from tests.integration import sounds
from tests.integration.serving import CHAT, RUN, STT, TTS, Serving, fake_model, serving, until
from tests.integration.sounds import JFK, JFK_WORDS, words
from uml.protocol.errors import UmlError

openai = pytest.importorskip("openai", reason="the extra `test` is not installed")
pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]
MB = 1 << 20
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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, speech: None) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("home"), UML_KEEP_ALIVE="-1") as s:
        yield s


@pytest.fixture
def official(served: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def hear(official: Any, data: bytes = JFK, name: str = "a.flac", **fields: Any) -> Any:
    return official.audio.transcriptions.create(model=STT, file=(name, io.BytesIO(data)), **fields)


def say(official: Any, text: str, shape: str = "mp3", **fields: Any) -> bytes:
    answer = official.audio.speech.create(
        model=TTS, voice=TTS, input=text, response_format=shape, **fields
    )
    return bytes(answer.content)


# --- hearing -------------------------------------------------------------------------------


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


# --- speaking ------------------------------------------------------------------------------


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


# --- beside others -------------------------------------------------------------------------


def test_models_and_voices_are_listed_with_their_languages(served: Serving, official: Any) -> None:
    models = {m.id: m.model_extra for m in official.models.list()}
    assert models[TTS]["languages"] == ["en-US"] and models[TTS]["voices"] == [TTS]
    assert models[STT]["languages"] == ["en"]


def test_worker_that_is_killed_while_it_hears_costs_nothing(served: Serving, official: Any) -> None:
    hear(official)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(hear, official, sounds.file(np.tile(sounds.samples(JFK), 3)))
        pid = until(lambda: next((w["pid"] for w in workers(served, STT) if w["busy"]), 0))
        psutil.Process(pid).kill()
        assert sounds.errors(JFK_WORDS * 3, words(asked.result().text)) <= 6


def workers(served: Serving, model: str) -> list[Any]:
    return [w for w in served.client.status()["workers"] if w["model"] == model]


def test_voice_borrows_the_memory_that_a_chat_model_fills_and_gives_it_back(
    tmp_path: Path, speech: None
) -> None:
    fake_model(tmp_path, "filler", options={"ram_bytes": 450 * MB})
    with serving(tmp_path, UML_BUDGET="ram=800MB", UML_KEEP_ALIVE="-1") as small:
        chat = {"model": "filler", "messages": [{"role": "user", "content": "say=hi"}]}
        with openai.OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0) as client:
            client.chat.completions.create(**chat)
            assert sounds.seconds(say(client, SENTENCES[0])) > 2
            assert [w["model"] for w in small.client.status()["workers"]] == [TTS]
            answer = client.chat.completions.create(**chat)
            assert "hi" in answer.choices[0].message.content
            assert [w["model"] for w in small.client.status()["workers"]] == ["filler"]
        receipts = small.client.status()["receipts"]
        assert {r["verified"] for r in receipts} == {"yes"} and len(receipts) == 2


def test_own_client_and_command_line_hear_and_speak(served: Serving, tmp_path: Path) -> None:
    uml, file = served.client, tmp_path / "said.wav"
    uml.audio.speech.create(model="tts-1", input=SENTENCES[0]).write_to_file(tmp_path / "said.mp3")
    told = uml.audio.transcriptions.create(model="whisper-1", file=tmp_path / "said.mp3")
    assert sounds.errors(words(SENTENCES[0]), words(told.text)) <= 1
    run = [sys.executable, str(RUN), "run"]
    env = os.environ | {"UML_URL": served.url, "UML_HOME": str(served.home)}
    common: Any = {"env": env, "capture_output": True, "timeout": 120, "stdin": subprocess.DEVNULL}
    done = subprocess.run([*run, TTS, SENTENCES[0], "-o", str(file)], check=True, **common)
    with wave.open(str(file)) as sound:
        assert 2 < sound.getnframes() / sound.getframerate() < 5, "the header has the length"
    done = subprocess.run([*run, STT, str(file), "--srt"], check=True, text=True, **common)
    (cue, *_) = pysubs2.SSAFile.from_string(done.stdout, format_="srt")
    assert sounds.errors(words(SENTENCES[0]), words(cue.plaintext)) <= 1


def test_websocket_hears_while_it_is_spoken(served: Serving) -> None:
    async def talk() -> tuple[list[Any], str]:
        found = []
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{served.url}/v1/ws") as socket:
                await socket.send_json({"type": "transcribe", "id": "t", "model": STT})
                raw = sounds.samples(JFK).tobytes()
                for start in range(0, len(raw), 32_000):
                    await socket.send_bytes(raw[start : start + 32_000])
                    await asyncio.sleep(0.2)
                await socket.send_json({"type": "end", "id": "t"})
                while not found or found[-1]["type"] != "done":
                    found.append(await socket.receive_json(timeout=60))
                    assert found[-1]["type"] != "error", found[-1]
        return found, found[-1]["text"]

    found, text = asyncio.run(talk())
    assert {m["type"] for m in found} == {"partial", "final", "done"}
    assert sounds.errors(JFK_WORDS, words(text)) <= 3, text


@pytest.mark.llama
def test_voice_stack_is_loaded_together_or_refused(
    tmp_path: Path, speech: None, models_dir: Path
) -> None:
    own = tmp_path / "uml.toml"
    own.write_text(f'[profiles]\nvoice = ["{CHAT}", "{STT}", "{TTS}"]\n')
    with serving(tmp_path / "a", UML_CONFIG=str(own)) as s:
        found = s.client.use_profile("voice")
        assert [w.model for w in found.workers] == [CHAT, STT, TTS]
        assert {w["model"] for w in s.client.status()["workers"]} == {CHAT, STT, TTS}
    with serving(tmp_path / "b", UML_CONFIG=str(own), UML_BUDGET="ram=700MB") as small:
        with pytest.raises(UmlError, match=rf"{CHAT} \d+ MB \+ {STT} \d+ MB \+ {TTS} \d+ MB ="):
            small.client.use_profile("voice")
        assert not small.client.status()["workers"]
