"""Log probabilities of a row, in OpenAI's shape; computed only for those who ask."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from uml.workers.backends.llama_cpp.vocab import Vocab


def describe(vocab: Vocab, row: Any, top: int) -> Any:
    """A function of the chosen token, giving its entry; `row` may change afterwards.

    The entry: token (text), logprob, bytes, and `top`: the most likely tokens, best first.
    """
    high = float(row.max())
    total = high + math.log(float(np.exp(row - high).sum()))
    best = []
    if top:
        ids = np.argpartition(row, -top)[-top:]
        ids = ids[np.argsort(-row[ids], kind="stable")]
        best = [_entry(vocab, int(i), float(row[i]) - total) for i in ids]
    values = row.copy()

    def entry(token: int) -> dict[str, Any]:
        return {**_entry(vocab, token, float(values[token]) - total), "top": best}

    return entry


def _entry(vocab: Vocab, token: int, logprob: float) -> dict[str, Any]:
    data = vocab.marked(token)
    # A token the sampler forbade has no finite logprob; JSON has no infinity.
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, -9999.0),
        "bytes": list(data),
    }
