"""Memory of Whisper models in whisper.cpp.

Source: whisper.cpp's whisper_init_state, whose log this agrees with for tiny (KV 3.15 + 9.44 +
2.36 MB, compute 130 MB). One window is worked on at a time, whatever the number of slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import MemoryEstimate, ModelFacts
from uml.supervisor.estimates.sums import spell, whole

#: Requests whose windows take turns.
_SLOTS = 4
#: Several candidates are looked at when the first answer is poor: so many times the self-attention.
_CANDIDATES = 7
#: Float32 values that the encoder's graphs hold for each audio position and channel.
_ENCODER_WIDTH = 15
#: What a request holds of its audio: a window as float32, with what is decoded ahead.
_AUDIO_BYTES = 4 << 20


def resolve(facts: ModelFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given, "n_ctx": 0, "slots": whole(given, "slots", _SLOTS)}


def estimate(facts: ModelFacts, options: Mapping[str, Any], process_bytes: int) -> MemoryEstimate:
    extra = facts.extra
    audio, text = (_round(int(extra.get(f"{half}_ctx", 0))) for half in ("audio", "text"))
    state, layers = int(extra.get("text_state", 0)), int(extra.get("text_layers", 0))
    own = 4 * state * layers * text * _CANDIDATES
    cross = 4 * state * (layers * audio + audio)
    compute = 4 * (_ENCODER_WIDTH * facts.embedding_length * audio + facts.vocab_size * text)
    compute += int(options.get("slots", _SLOTS)) * _AUDIO_BYTES
    kv = own + cross
    return MemoryEstimate(
        facts.weights_bytes,
        kv,
        compute,
        process_bytes,
        mapped=False,
        arithmetic=spell(
            (facts.weights_bytes, "weights"),
            (kv, "attention"),
            (compute, "buffers"),
            (process_bytes, "process"),
        ),
    )


def _round(positions: int) -> int:
    return -(-positions // 256) * 256
