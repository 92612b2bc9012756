"""Damaged sound files: each is answered, nothing hangs, and a worker's death costs nobody else.

UML_TEST_FUZZ=N tries N files instead of a few (`make fuzz-sound` a thousand); UML_TEST_FUZZ_SEED
other ones.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import STT, Serving, serving
from tests.integration.speech import sounds
from uml.protocol.errors import UmlError

pytestmark = [pytest.mark.speech, pytest.mark.timeout(3600)]
COUNT = int(os.environ.get("UML_TEST_FUZZ", "60"))
SEED = int(os.environ.get("UML_TEST_FUZZ_SEED", "1"))
#: Of what a file may be answered with: heard, refused, or (a worker that died of it) said to be so.
ANSWERS = {200, 400, 413, 502}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, speech: None) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("home"), UML_KEEP_ALIVE="-1", UML_MAX_AUDIO="1m") as s:
        yield s


def damaged(chance: random.Random, whole: bytes) -> bytes:
    """Bytes changed, pieces cut out, doubled, filled; lengths that are wrong."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 8)):
        # Headers are where lengths are.
        at = chance.randrange(min(len(data), 200) if chance.random() < 0.5 else len(data))
        size = chance.choice((1, 1, 2, 4, 64, 1000))
        match chance.randrange(5):
            case 0:
                data[at : at + size] = chance.randbytes(len(data[at : at + size]))
            case 1:
                data[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
                )
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at] ^= 1 << chance.randrange(8)
        if len(data) < 16:
            break
    return bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.2 else data)


def test_damaged_sound_is_answered_whatever_it_is(served: Serving) -> None:
    clip = sounds.samples(sounds.JFK)[: sounds.RATE]
    wholes = [sounds.file(clip, kind) for kind in sounds.CONTAINERS]
    chance, answers, slowest = random.Random(SEED), Counter[int](), 0.0
    hear = served.client.audio.transcriptions.create
    for number in range(COUNT):
        data = damaged(chance, wholes[number % len(wholes)])
        started = time.monotonic()
        try:
            hear(model=STT, file=("a", io.BytesIO(data)))
            answers[200] += 1
        except UmlError as e:
            answers[e.status] += 1
            assert e.status in ANSWERS, f"number {number}: {e.status} {e.message}"
        slowest = max(slowest, time.monotonic() - started)
        assert served.process.poll() is None
    print(f"{COUNT} files: {dict(answers)}, the slowest took {slowest:.1f} s")
    assert slowest < 60
    told = hear(model=STT, file=("a.flac", sounds.JFK))
    assert sounds.words(told.text) == sounds.JFK_WORDS, "the next one is heard"
    assert Path(f"/proc/{served.process.pid}").exists()
