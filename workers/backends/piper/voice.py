"""A loaded voice. Source: piper's `PiperVoice`, whose parts are used one by one: the session with
threads of our number, sentences cut to a length that bounds memory and waiting."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig

from uml.protocol.errors import BadRequest, InvalidModel
from uml.workers.backends.piper.text import blocks, breaths
from uml.workers.turns import Turns


class Voice:
    """rate: samples a second. Threads may share it: their sentences take turns, so that each has
    all cores, and memory for one is enough."""

    def __init__(self, path: str, threads: int) -> None:
        with open(f"{path}.json", encoding="utf-8") as f:
            said = json.load(f)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads)
        options.inter_op_num_threads = 1
        # Memory of a run is given back after it: its size is that of the longest sentence.
        options.enable_cpu_mem_arena = False
        # Measured on 2 busy cores: 4.3 s against 7.5 s for a minute of speech.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(
                path, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # the library's errors have no common base
            raise InvalidModel(f"{path} is no network that onnxruntime takes: {e}") from e
        self._voice = PiperVoice(session=session, config=PiperConfig.from_dict(said))
        self._speakers: dict[str, int] = dict(said.get("speaker_id_map") or {})
        self._count = int(said.get("num_speakers") or 1)
        self._turns = Turns()
        self.rate = self._voice.config.sample_rate

    def facts(self) -> dict[str, Any]:
        config = self._voice.config
        return {
            "type": "tts",
            "arch": "vits",
            "sample_rate": self.rate,
            "speakers": self._count,
            "language": config.espeak_voice,
        }

    def speak(
        self,
        text: str,
        speaker: str | None,
        speed: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[np.ndarray[Any, Any]]:
        """int16 samples, sentence by sentence. Raises: BadRequest for a speaker it has not,
        Cancelled."""
        config = SynthesisConfig(
            speaker_id=self._speaker(speaker),
            length_scale=self._voice.config.length_scale / speed,
        )
        for block in blocks(text):
            for sentence in self._voice.phonemize(block):
                for phonemes in breaths(sentence):
                    with self._turns.mine(stopped):
                        samples = self._say(list(phonemes), config)
                    yield samples

    def tidy(self) -> None:
        """Give memory back that the C library keeps for later. Source: malloc_trim(3)."""
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)

    def _say(self, phonemes: list[str], config: Any) -> np.ndarray[Any, Any]:
        ids = self._voice.phonemes_to_ids(phonemes)
        audio = np.atleast_1d(self._voice.phoneme_ids_to_audio(ids, config))
        loudest = float(np.max(np.abs(audio))) if len(audio) else 0.0
        if loudest < 1e-8:
            return np.zeros(len(audio), np.int16)
        return (audio * (32767.0 / loudest)).astype(np.int16)

    def _speaker(self, name: str | None) -> int | None:
        if name is None or self._count <= 1:
            return None
        if name in self._speakers:
            return self._speakers[name]
        if name.isdecimal() and int(name) < self._count:
            return int(name)
        raise BadRequest(f"this voice has no speaker {name!r}", param="voice")
