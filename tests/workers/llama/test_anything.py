"""Requests of all kinds at random, in a pool far too small, some cancelled: all of them end."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.workers.llama.conftest import CHAT_MODEL
from tests.workers.llama.driver import ROOT, WorkerProcess
from uml.protocol.tasks import Complete, Sampling

pytestmark = pytest.mark.llama

DRAW = """
import sys, types
uml = types.ModuleType("uml"); uml.__path__ = [sys.argv[1]]; sys.modules["uml"] = uml
import numpy as np
from uml.workers.backends.llama_cpp.sampling import Draw
row = np.full(5000, -40, np.float32)
row[[3, 511, 512, 4999]] = np.log([0.1, 0.2, 0.3, 0.4])
draw, again = Draw(1, 1.0), Draw(1, 1.0)
drawn = [draw(row) for _ in range(20000)]
assert drawn[:100] == [again(row) for _ in range(100)]
for token, share in ((3, 0.1), (511, 0.2), (512, 0.3), (4999, 0.4)):
    assert abs(drawn.count(token) / 20000 - share) < 0.02, (token, drawn.count(token))
cold = Draw(1, 0.01)
assert {cold(row) for _ in range(100)} == {4999}
"""


def task(chance: random.Random) -> Complete:
    shared = [700] * chance.choice([0, 50, 150])
    own = [chance.randrange(1000, 20000) for _ in range(chance.randrange(1, 60))]
    return Complete(
        prompt=shared + own,
        n=chance.choice([1, 1, 3]),
        max_tokens=chance.choice([0, 1, 10, 40]),
        stop=chance.choice([[], ["a"]]),
        top_logprobs=chance.choice([None, None, 2]),
        ignore_eos=chance.random() < 0.5,
        grammar=chance.choice([None, None, None, 'root ::= [a-z]+ "."']),
        sampling=Sampling(
            temperature=chance.choice([0, 1, 0.7]),
            top_p=chance.choice([1, 0.9]),
            seed=chance.choice([None, 3]),
            repeat_penalty=chance.choice([1, 1.1]),
        ),
    )


def test_whatever_is_asked_ends(llama_python: str, models_dir: Path) -> None:
    chance = random.Random(5)
    worker = WorkerProcess(
        llama_python,
        models_dir / CHAT_MODEL,
        n_ctx=256,
        slots=6,
        kv_cells=512,
        prefix_cache_bytes=8 << 20,
    )
    try:
        names: list[str] = []
        for _ in range(30):
            window = chance.choice([1 << 20, 64]) if names else 1 << 20
            names.append(worker.ask(task(chance), window=window))
            if chance.random() < 0.25:
                worker.cancel(chance.choice(names))
            if chance.random() < 0.3:  # some find the pool empty, some find it full
                worker.until(lambda: worker.answers[names[0]].ended)
        for name in names:
            worker.credit(name, 1 << 20)
        for answer in worker.wait(*names):
            assert answer.done is not None
            assert set(answer.done.finish) <= {"stop", "length", "cancelled"}
        worker.idle()
    finally:
        worker.close()


def test_drawing_by_probability_keeps_the_proportions(llama_python: str) -> None:
    subprocess.run([llama_python, "-I", "-c", DRAW, str(ROOT)], check=True)
