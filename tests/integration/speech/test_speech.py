"""Hearing and speaking beside everything else: lists, deaths, memory, clients, profiles."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import psutil
import pysubs2
import pytest

from tests.integration.serving import CHAT, RUN, STT, TTS, Serving, fake_model, serving, until
from tests.integration.speech import sounds
from tests.integration.speech.sounds import JFK, JFK_WORDS, SENTENCES, words
from tests.integration.speech.talking import hear, say
from uml.protocol.errors import UmlError

pytestmark = [pytest.mark.speech, pytest.mark.timeout(600)]
MB = 1 << 20


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
