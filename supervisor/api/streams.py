"""Streamed answers in OpenAI's chunk shapes.

All of a chunk but its text is the same for one choice of one stream, so it is made once; a token
costs an escape and a concatenation. Source: OpenAI API reference, streaming.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring as quote
from typing import Any

from uml.supervisor.api.answers import (
    FINGERPRINT,
    chat_logprobs,
    dump,
    new_id,
    text_logprobs,
    usage_of,
)
from uml.supervisor.api.sse import Outlet
from uml.supervisor.api.waiting import Wait


class _Stream(Wait, abc.ABC):
    """A sink whose output goes out as it comes. include_usage: a last chunk with the usage."""

    def __init__(
        self, outlet: Outlet, prefix: str, kind: str, model: str, include_usage: bool
    ) -> None:
        super().__init__()
        self._outlet, self._usage = outlet, include_usage
        envelope = {
            "id": new_id(prefix),
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._open = f"data: {dump(envelope)[:-1]},"
        # Where usage was asked for, every other chunk says null.
        self._close = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._tail = f',"logprobs":null,"finish_reason":null}}]{self._close}'
        self._heads: dict[int, str] = {}

    def backlog(self) -> int:
        return self._outlet.backlog()

    def _choice(self, index: int, what: str, logprobs: object, finish: str | None) -> str:
        return (
            f'{self._open}"choices":[{{"index":{index},{what},"logprobs":{dump(logprobs)},'
            f'"finish_reason":{dump(finish)}}}]{self._close}'
        )

    def end(self, finish: Sequence[str], usage: Mapping[str, int]) -> None:
        """The last chunks. finish: a reason for every choice."""
        for index, reason in enumerate(finish):
            self._last(index, reason)
        if self._usage:
            totals = dump(usage_of(usage))
            self._outlet.send(f'{self._open}"choices":[],"usage":{totals}}}\n\n')
        self._outlet.send("data: [DONE]\n\n")

    @abc.abstractmethod
    def _last(self, index: int, reason: str) -> None:
        """The chunk that ends a choice."""


class ChatStream(_Stream):
    def __init__(self, outlet: Outlet, model: str, include_usage: bool) -> None:
        super().__init__(outlet, "chatcmpl", "chat.completion.chunk", model, include_usage)
        self._tail = "}" + self._tail

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        head = self._heads.get(index) or self._begin(index)
        if isinstance(delta, str):
            self._outlet.send(head + quote(delta) + self._tail)
        elif isinstance(delta, dict):
            self._rare(index, delta)

    def _begin(self, index: int) -> str:
        """The first chunk of a choice carries the role."""
        role = '"delta":{"role":"assistant","content":"","refusal":null}'
        self._outlet.send(self._choice(index, role, None, None))
        head = f'{self._open}"choices":[{{"index":{index},"delta":{{"content":'
        self._heads[index] = head
        return head

    def _rare(self, index: int, delta: dict[str, Any]) -> None:
        said: dict[str, Any] = {}
        if delta.get("text") is not None:
            said["content"] = delta["text"]
        if delta.get("reasoning"):
            said["reasoning_content"] = delta["reasoning"]
        if delta.get("tool_calls"):
            said["tool_calls"] = [
                {"index": position} | call for position, call in enumerate(delta["tool_calls"])
            ]
        tokens = delta.get("logprobs")
        logprobs = None if tokens is None else chat_logprobs(tokens)
        if said or logprobs:
            self._outlet.send(self._choice(index, f'"delta":{dump(said)}', logprobs, None))

    def _last(self, index: int, reason: str) -> None:
        if index not in self._heads:
            self._begin(index)
        self._outlet.send(self._choice(index, '"delta":{}', None, reason))


class CompletionStream(_Stream):
    def __init__(self, outlet: Outlet, model: str, include_usage: bool) -> None:
        super().__init__(outlet, "cmpl", "text_completion", model, include_usage)
        self._offsets: dict[int, int] = {}

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if isinstance(delta, str):
            head = self._heads.get(index) or self._begin(index)
            self._outlet.send(head + quote(delta) + self._tail)
            self._offsets[index] += len(delta)
        elif isinstance(delta, dict):
            self._rare(index, delta)

    def _begin(self, index: int) -> str:
        head = f'{self._open}"choices":[{{"index":{index},"text":'
        self._offsets.setdefault(index, 0)
        self._heads[index] = head
        return head

    def _rare(self, index: int, delta: dict[str, Any]) -> None:
        text, tokens = delta.get("text") or "", delta.get("logprobs")
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        logprobs = None if tokens is None else text_logprobs(tokens, offset)
        if text or logprobs:
            self._outlet.send(self._choice(index, f'"text":{dump(text)}', logprobs, None))

    def _last(self, index: int, reason: str) -> None:
        self._outlet.send(self._choice(index, '"text":""', None, reason))
