"""What speech models take, beside what the libraries themselves say."""

from __future__ import annotations

import pytest

from uml.protocol.errors import BadRequest
from uml.protocol.models import ModelFacts
from uml.supervisor.estimates import estimate, resolve_options

#: Whisper tiny.en as its header says.
TINY = ModelFacts(
    format="whisper",
    type="stt",
    arch="whisper",
    vocab_size=51864,
    embedding_length=384,
    weights_bytes=77_110_272,
    extra={"audio_ctx": 1500, "text_ctx": 448, "text_state": 384, "text_layers": 4},
)


def test_whisper_buffers_are_what_the_library_logs() -> None:
    guess = estimate(TINY, {"slots": 1}, 0)
    # The log of whisper.cpp 1.8.5: self 3.15 MB per candidate, cross 9.44, pad 2.36.
    assert guess.kv_bytes == pytest.approx(7 * 3.15e6 + 9.44e6 + 2.36e6, rel=0.01)
    # conv 13.21, encode 17.72, cross 3.89, decode 95.91 MB; and the audio of one request.
    assert guess.compute_bytes == pytest.approx(130.73e6 + (4 << 20), rel=0.15)
    more = estimate(TINY, {"slots": 5}, 0)
    assert more.model_bytes - guess.model_bytes == 4 * (4 << 20), "requests share the model"


def test_voice_takes_its_network_and_room_to_speak() -> None:
    facts = ModelFacts("piper", "tts", "vits", weights_bytes=63_201_294)
    guess = estimate(facts, {}, 96 << 20)
    # Measured: 472 MB at most for one speaker of long sentences, 96 MB of which are the process.
    assert 450e6 < guess.total_bytes < 600e6
    assert "speaking" in guess.arithmetic


@pytest.mark.parametrize("facts", [TINY, ModelFacts("piper", "tts", "vits")])
def test_slots_are_a_whole_number(facts: ModelFacts) -> None:
    assert resolve_options(facts, {})["slots"] == 4
    assert resolve_options(facts, {"slots": 9})["slots"] == 9
    with pytest.raises(BadRequest, match="slots"):
        resolve_options(facts, {"slots": 0})
