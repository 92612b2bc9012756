"""One answer in the making (`Sequence`) and the request it belongs to: data, no library."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from uml.workers.backends.llama_cpp.lookup import Lookup
from uml.workers.backends.llama_cpp.text import TextStream
from uml.workers.base import Delta, Job


class Sampler(Protocol):
    """What the engine needs of `sampling.Sampler`."""

    greedy: bool

    @property
    def finished(self) -> bool: ...

    def pick(self, context: Any, index: int, row: Any) -> int: ...

    def free(self) -> None: ...


class Tenant(Protocol):
    """Who computes in a slot: the first `past` of `tokens` are in the KV cache while `slot` is
    set."""

    tokens: list[int]
    slot: int | None
    past: int


class Reply(Protocol):
    """Makes deltas of an answer's text; `PlainReply` where text is all there is."""

    def feed(self, text: str) -> list[Delta]: ...

    def end(self) -> list[Delta]: ...

    def finish(self, reason: str) -> str: ...


class PlainReply:
    def feed(self, text: str) -> list[Delta]:
        return [text] if text else []

    def end(self) -> list[Delta]:
        return []

    def finish(self, reason: str) -> str:
        return reason


@dataclass(eq=False)
class Sequence:
    """tokens: prompt and answer; the first `past` of them are in the KV pool while `slot` is set.
    limit: `tokens` never grows longer. order: of arrival, smaller is older."""

    request: Request
    index: int
    tokens: list[int]
    sampler: Sampler
    stream: TextStream
    reply: Reply
    limit: int
    order: int = 0
    slot: int | None = None
    past: int = 0
    ended: bool = False
    #: Prompt tokens found in the cache when it first got a slot; None before.
    cached: int | None = None
    #: Preempted: not let in again before this many sequences have ended.
    hold: int = 0
    #: Waits until that sequence has computed so many tokens that are common to both.
    follows: tuple[Tenant, int] | None = None
    #: Log probabilities of tokens whose text is not out yet: (bytes of the answer up to the
    #: token's start, to its end, entry).
    entries: deque[tuple[int, int, dict[str, Any]]] = field(default_factory=deque)
    bytes_in: int = 0
    lookup: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.lookup = Lookup(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen; 1 = answering."""
        return len(self.tokens) - self.past

    @property
    def answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.request.prompt


@dataclass(eq=False)
class Request:
    """A job's sequences and sums. prompt: tokens. top_logprobs: None = no logprobs.
    ends: stop at an end-of-answer token. repeatable: the same question is to get the same answer.
    speculate: its tokens may be guessed. guessed, right: tokens that were, and that stood.
    first_at: when the first token was chosen."""

    job: Job
    prompt: int
    top_logprobs: int | None = None
    ends: bool = True
    repeatable: bool = False
    speculate: bool = True
    #: Text that goes before every choice's answer.
    echo: str = ""
    #: Control tokens whose names count as text of the answer.
    marks: frozenset[int] = frozenset()
    sequences: list[Sequence] = field(default_factory=list)
    finish: dict[int, str] = field(default_factory=dict)
    arrived_at: float = field(default_factory=time.monotonic)
    guessed: int = 0
    right: int = 0
    started_at: float | None = None
    first_at: float | None = None

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": sum(s.answer for s in self.sequences),
            "cached_tokens": self.sequences[0].cached or 0 if self.sequences else 0,
        }

    def timings(self, now: float) -> dict[str, float]:
        """Seconds: in the queue, until the first token from there, and from there to the end.
        Where tokens were guessed, how many and how many stood, by llama-server's names."""
        started = self.started_at or now
        first = self.first_at or now
        drafted = {"draft_n": self.guessed, "draft_n_accepted": self.right}
        return {
            "queue": started - self.arrived_at,
            "prompt": first - started,
            "generate": now - first,
            **(drafted if self.guessed else {}),
        }
