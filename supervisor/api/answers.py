"""Whole answers in OpenAI's shapes. Source: OpenAI API reference."""

from __future__ import annotations

import base64
import json
import math
import secrets
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from uml.protocol import __version__
from uml.protocol.errors import InternalError
from uml.supervisor.api.waiting import Wait

#: Same build, same sampling: what OpenAI means by it.
FINGERPRINT = f"uml-{__version__}"


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def dump(value: object) -> str:
    """Compact JSON, characters as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def usage_of(usage: Mapping[str, int]) -> dict[str, Any]:
    """OpenAI's usage object out of a worker's."""
    prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


def add_usage(all_usage: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for usage in all_usage:
        for name, count in usage.items():
            total[name] = total.get(name, 0) + count
    return total


class Choice:
    """One choice's output, collected."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.tools: dict[int, dict[str, Any]] = {}

    def take(self, delta: Mapping[str, Any]) -> None:
        """A delta that is a map; see `uml.protocol.messages`."""
        if delta.get("text"):
            self.texts.append(delta["text"])
        if delta.get("reasoning"):
            self.reasoning.append(delta["reasoning"])
        self.logprobs += delta.get("logprobs") or ()
        for position, piece in enumerate(delta.get("tool_calls") or ()):
            self._take_call(piece.get("index", position), piece)

    def _take_call(self, index: int, piece: Mapping[str, Any]) -> None:
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self.tools.setdefault(index, empty)
        call["id"] = call["id"] or piece.get("id") or ""
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Collector(Wait):
    """A sink that keeps everything, for answers that are not streamed."""

    def __init__(self) -> None:
        super().__init__()
        self._choices: dict[int, Choice] = {}

    def choice(self, index: int) -> Choice:
        found = self._choices.get(index)
        if found is None:
            found = self._choices[index] = Choice()
        return found

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if isinstance(delta, str):
            self.choice(index).texts.append(delta)
        elif isinstance(delta, dict):
            self.choice(index).take(delta)

    def backlog(self) -> int:
        return 0

    def restart(self, choices: range | None = None) -> bool:
        for index in list(self._choices if choices is None else choices):
            self._choices.pop(index, None)
        return True


class Vectors(Wait):
    """A sink for embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, bytes] = {}

    def chunk(self, index: int, delta: str | bytes | dict[str, Any]) -> None:
        if isinstance(delta, dict) and "vector" in delta:
            self.found[index] = delta["vector"]

    def backlog(self) -> int:
        return 0

    def restart(self, choices: range | None = None) -> bool:
        return True  # each vector comes whole, and the same again


def chat_answer(
    model: str,
    output: Collector,
    finish: Sequence[str],
    usage: Mapping[str, int],
    logprobs: bool,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    choices = []
    for index, reason in enumerate(finish):
        choice = output.choice(index)
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.tools:
            message["tool_calls"] = [call for _, call in sorted(choice.tools.items())]
            message["content"] = choice.text or None
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(choice.logprobs) if logprobs else None,
                "finish_reason": reason,
            }
        )
    return _answer("chatcmpl", "chat.completion", model, choices, usage, timings)


def completion_answer(
    model: str,
    output: Collector,
    finish: Sequence[str],
    usage: Mapping[str, int],
    logprobs: bool,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "text": output.choice(index).text,
            "logprobs": _logprobs_of(output.choice(index)) if logprobs else None,
            "finish_reason": reason,
        }
        for index, reason in enumerate(finish)
    ]
    return _answer("cmpl", "text_completion", model, choices, usage, timings)


def _logprobs_of(choice: Choice) -> dict[str, Any]:
    """What was echoed comes before the first token."""
    echoed = len(choice.text) - sum(len(t["token"]) for t in choice.logprobs)
    return text_logprobs(choice.logprobs, max(0, echoed))


def _answer(
    prefix: str,
    kind: str,
    model: str,
    choices: list[dict[str, Any]],
    usage: Mapping[str, int],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    answer = {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage_of(usage),
    }
    return answer | ({"timings": dict(timings)} if timings else {})


# A worker says of a token: token (its text), logprob, bytes, and top, a list of the same for the
# likeliest ones.


def chat_logprobs(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newer shape: a list of tokens with their alternatives."""
    content = [{**t, "top_logprobs": list(t.get("top") or ())} for t in tokens]
    for entry in content:
        entry.pop("top", None)
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Mapping[str, Any]], offset: int) -> dict[str, Any]:
    """The older shape: parallel lists. offset: characters before the first token."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [t["token"] for t in tokens],
        "token_logprobs": [t.get("logprob") for t in tokens],
        "top_logprobs": [{a["token"]: a["logprob"] for a in t.get("top") or ()} for t in tokens],
        "text_offset": offsets,
    }


def embedding_answer(
    model: str, vectors: Mapping[int, bytes], count: int, encoding: str, usage: Mapping[str, int]
) -> str:
    """The body as text: numbers are written with the nine digits that tell float32 apart.

    Raises: InternalError when a vector is missing or not finite.
    """
    rows = []
    for index in range(count):
        vector = vectors.get(index)
        if vector is None:
            raise InternalError(f"the model returned no vector for input {index}")
        body = f'"{base64.b64encode(vector).decode()}"' if encoding == "base64" else _floats(vector)
        rows.append(f'{{"object":"embedding","index":{index},"embedding":{body}}}')
    prompt = usage.get("prompt_tokens", 0)
    tokens = dump({"prompt_tokens": prompt, "total_tokens": prompt})
    data = ",".join(rows)
    return f'{{"object":"list","data":[{data}],"model":{dump(model)},"usage":{tokens}}}'


def _floats(vector: bytes) -> str:
    values = array("f", vector)
    if not math.isfinite(math.fsum(values)):
        raise InternalError("the model returned a vector that is not finite")
    return "[" + ",".join([f"{v:.9g}" for v in values]) + "]"
