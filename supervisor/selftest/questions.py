"""Questions whose right answers are known, because they were asked alone before: pure.

A greedy answer is always the same but for one thing: where two tokens are nearly equally likely,
the sums of a batch, rounded otherwise than those of a single sequence, may choose the other one,
and everything after it differs. So what has to come is the beginning of the answer up to the first
token that was not clearly decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = 12
#: Nats by which a token has to lead the next likely one to count as decided.
_CLEAR = 0.5
_SAME_DIRECTION = 0.999

_CHAT = (
    "What is the capital of France? Answer in one sentence.",
    "Name three colours.",
    "How many days does a week have?",
    "Say hello to my friend Anna.",
    "What do bees make?",
    "Which animal says meow?",
)
_TEXTS = (
    "Paris is the capital of",
    "One, two, three, four,",
    "Monday, Tuesday, Wednesday,",
    "The quick brown fox jumps over the lazy",
    "To be, or not to be, that is the",
    "A B C D E F G",
)
_TASKS = ("chat", "complete", "embed")


@dataclass(frozen=True)
class Question:
    """task: chat, complete or embed."""

    model: str
    task: str
    text: str

    def body(self, *, stream: bool = False, told_chances: bool = False) -> dict[str, Any]:
        """The request. told_chances: with how likely each token was, and the next likely one."""
        if self.task == "embed":
            return {"model": self.model, "input": self.text}
        body = {"model": self.model, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
        if self.task == "chat":
            chances = {"logprobs": True, "top_logprobs": 2}
            body |= {"messages": [{"role": "user", "content": self.text}]}
        else:
            chances = {"logprobs": 2}
            body |= {"prompt": self.text}
        return body | (chances if told_chances else {})


def questions(model: str, tasks: Sequence[str], *, fake: bool) -> list[Question]:
    """What `model` is asked; nothing when it can do none of the tasks."""
    task = next((t for t in _TASKS if t in tasks), None)
    if task is None:
        return []
    if fake:
        texts: Sequence[str] = [f"who say=word{number}" for number in range(6)]
    else:
        texts = _TEXTS if task == "complete" else _CHAT
    return [Question(model, task, text) for text in texts]


def said(task: str, answer: Any) -> str | list[float]:
    """The content of a whole answer."""
    if task == "embed":
        vector: list[float] = answer["data"][0]["embedding"]
        return vector
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if task == "chat" else choice["text"])


def right_answer(task: str, answer: Any) -> str | list[float]:
    """What an answer to the same question has to begin with; an embedding is all of it. Empty when
    not even the first token was clear."""
    whole = said(task, answer)
    if isinstance(whole, list):
        return whole
    margins = list(_margins(task, answer["choices"][0].get("logprobs")))
    if not margins:
        return whole
    clear = ""
    for token, margin in margins:
        if margin < _CLEAR or not whole.startswith(clear + token):
            return clear
        clear += token
    return whole


def _margins(task: str, told: Mapping[str, Any] | None) -> list[tuple[str, float]]:
    """Tokens, and by how much each led; none where the backend does not say."""
    if not told:
        return []
    if task == "chat":
        rows = [
            (row["token"], [top["logprob"] for top in row.get("top_logprobs") or []])
            for row in told.get("content") or []
        ]
    else:
        tops = told.get("top_logprobs") or []
        rows = [
            (token, list((top or {}).values()))
            for token, top in zip(told.get("tokens") or [], tops, strict=False)
        ]
    return [(token, _lead(chances)) for token, chances in rows]


def _lead(chances: Sequence[float]) -> float:
    first, second, *_ = [*sorted(chances, reverse=True), -math.inf, -math.inf]
    return first - second if second > -math.inf else math.inf


def is_right(given: str | list[float], right: str | list[float]) -> bool:
    """Whether a whole answer is the right one."""
    if isinstance(given, list) and isinstance(right, list):
        return _cosine(given, right) >= _SAME_DIRECTION
    return isinstance(given, str) and isinstance(right, str) and given.startswith(right)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b):
        return 0.0
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0
