"""Hearing and speaking beside the libraries called directly: real-time factors, and how long the
first sound of a long text takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.bars import BARE
from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import THREADS, ours
from tests.integration.serving import BACKENDS, STT, TTS
from tests.integration.speech import sounds
from uml.supervisor.bench import Figures
from uml.supervisor.client import Client

_SCRIPT = Path(__file__).with_name("bare_speech.py")
_SENTENCE = "The quick brown fox jumps over the lazy dog."
#: Some seven seconds of speech, and a minute of it.
_TEXT = f"{_SENTENCE} She sells fresh bread and butter in the market every morning."
_LONG = " ".join([_TEXT] * 8)


class Bare:
    """One of the libraries in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **job: str) -> Figures:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        return {"rtf": found["seconds"] / found["audio_s"]}


@contextlib.contextmanager
def _bare(kind: str, backend: str, pattern: str) -> Iterator[Bare]:
    model = next(Path(os.environ["UML_TEST_SPEECH_MODELS"]).glob(pattern))
    command = [os.environ[BACKENDS[backend]], str(_SCRIPT), kind, str(model), str(THREADS)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"GOMP_SPINCOUNT": "1000"},
    )
    try:
        yield Bare(process)
    finally:
        process.kill()
        process.communicate()


async def speech(run: Run) -> None:
    recording = np.concatenate([sounds.samples(sounds.JFK)] * 2)
    wav = sounds.file(recording)
    with (
        ours(UML_KEEP_ALIVE="-1") as s,
        _bare("whisper", "whisper_cpp", "ggml-*.bin") as ears,
        _bare("piper", "piper", "*.onnx") as mouth,
        tempfile.NamedTemporaryFile(suffix=".f32") as pcm,
    ):
        (recording.astype(np.float32) / 32768).tofile(pcm.name)
        client = s.client
        cases: list[tuple[str, Callable[[], Figures], Callable[[], Figures]]] = [
            ("22 s heard", lambda: _hear(client, wav), lambda: ears.ask(pcm=pcm.name)),
            ("7 s spoken", lambda: _say(client, _TEXT), lambda: mouth.ask(text=_TEXT)),
        ]
        for _, mine, theirs in cases:  # loaded and warm
            mine(), theirs()
        for number in range(run.rounds):
            for case, mine, theirs in cases:
                pair = [("uml", mine), (BARE, theirs)]
                for name, work in pair if number % 2 else reversed(pair):
                    await run.measure(case, name, number, asyncio.to_thread(work))
            alone = _say(client, _SENTENCE)["whole_s"]
            first = _say(client, _LONG)["first_sound_s"]
            run.note("a minute spoken", "uml", number, {"first_per_sentence": first / alone})


def _hear(client: Client, wav: bytes) -> Figures:
    started = time.perf_counter()
    told = client.audio.transcriptions.create(
        model=STT, file=("a.wav", wav), response_format="verbose_json"
    )
    return {"rtf": (time.perf_counter() - started) / told.duration}


def _say(client: Client, text: str) -> Figures:
    started, first, count = time.perf_counter(), 0.0, 0
    request: Any = client.audio.speech.with_streaming_response.create(
        model=TTS, input=text, response_format="pcm"
    )
    with request as answer:
        for piece in answer.iter_bytes():
            first = first or time.perf_counter() - started
            count += len(piece)
    whole = time.perf_counter() - started
    return {"rtf": whole / (count / 48000), "first_sound_s": first, "whole_s": whole}
