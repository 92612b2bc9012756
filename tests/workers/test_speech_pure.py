"""Text in pieces that can be spoken, sound in every format and back: without a model."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uml.protocol.errors import BadRequest, Cancelled, TooLarge
from uml.workers.backends.piper.text import MOST_PHONEMES, blocks, breaths
from uml.workers.sound import decode
from uml.workers.sound.encode import FORMATS, PCM_RATE, Encoder
from uml.workers.turns import Turns


@settings(deadline=None)
@given(st.text(alphabet="ab .!?,\n\u3002A1", max_size=4000))
def test_blocks_keep_every_character_but_spaces_in_order(text: str) -> None:
    found = list(blocks(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(block) <= 2000 for block in found)


def test_first_block_is_short_and_abbreviations_are_no_ends() -> None:
    text = "Dr. Smith of the U.S. Navy paid 3.50 dollars to Mr. Jones for it all today. " * 20
    first, *_ = blocks(text)
    assert len(first) <= 300 and first.endswith("today. ")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", " ", ",", "."]), max_size=1000))
def test_breaths_keep_every_phoneme_and_are_bounded(phonemes: list[str]) -> None:
    found = list(breaths(phonemes))
    assert [p for breath in found for p in breath] == phonemes
    assert all(0 < len(breath) <= MOST_PHONEMES for breath in found)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_encoded_in_pieces_is_decoded_whole(form: str) -> None:
    tone = (9000 * np.sin(np.arange(44100) / 20)).astype(np.int16)
    encoder = Encoder(form, 22050)
    data = b"".join(encoder.write(tone[i : i + 5000]) for i in range(0, len(tone), 5000))
    data += encoder.end()
    if form == "pcm":
        pieces = decode.bare(io.BytesIO(data), PCM_RATE, 60, lambda: False)
    else:
        assert decode.length_of(io.BytesIO(data), 60) == pytest.approx(2, abs=0.2)
        pieces = decode.samples(io.BytesIO(data), 60, lambda: False)
    heard = np.concatenate(list(pieces))
    assert len(heard) / decode.RATE == pytest.approx(2, abs=0.15)
    assert 0.2 < np.max(np.abs(heard)) < 0.6


def test_sound_that_is_too_long_or_none_is_refused() -> None:
    encoder = Encoder("flac", 16000)
    data = io.BytesIO(encoder.write(np.zeros(32000, np.int16)) + encoder.end())
    with pytest.raises(TooLarge, match="max_audio"):
        decode.length_of(data, 1.0)
    with pytest.raises(TooLarge):
        list(decode.samples(data, 1.0, lambda: False))
    with pytest.raises(BadRequest, match="no audio"):
        decode.length_of(io.BytesIO(b"nothing of the kind"), 60)
    assert list(decode.samples(data, 60, lambda: True)) == [], "stopped"


def test_turns_are_given_in_order_and_not_to_those_who_left() -> None:
    turns = Turns()
    with turns.mine(lambda: False):
        with pytest.raises(Cancelled), turns.mine(lambda: True):
            pass
    with turns.mine(lambda: False):
        pass
