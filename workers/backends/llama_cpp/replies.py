"""What an answer's text is made of: text, reasoning and tool calls. Pure.

Recognised, wherever the text is cut: `<think>...</think>` at the beginning; and, when the request
has tools, `<tool_call>{...}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS][{...}]` (Mistral),
`<|python_tag|>{...}` and an answer that is nothing but a call in JSON (Llama 3).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable
from typing import Any

from uml.workers.base import Delta

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
CALLS, PYTHON = "[TOOL_CALLS]", "<|python_tag|>"
#: Texts that may be single control tokens, which are not shown otherwise.
MARKS = (THINK, THOUGHT, CALL, CALLED, CALLS, PYTHON)


class ChatReply:
    """tools: names that may be called; none = calls are not looked for. thinking: the prompt
    itself opened the reasoning. several: more than one call is wanted."""

    def __init__(
        self, tools: Collection[str] = (), *, thinking: bool = False, several: bool = True
    ) -> None:
        self._tools, self._several = frozenset(tools), several
        self._mode = "think" if thinking else "start"
        self._held = ""
        self._calls = 0
        self._thought = False

    def feed(self, text: str) -> list[Delta]:
        if self._mode == "plain":
            return [text] if text else []
        self._held += text
        out: list[Delta] = []
        while getattr(self, f"_{self._mode}")(out):
            pass
        return out

    def end(self) -> list[Delta]:
        rest, self._held = self._held, ""
        if not rest:
            return []
        if self._mode == "think":
            return [{"reasoning": rest}]
        if self._mode in ("call", "rest"):
            return self._called(rest) or [rest]
        return [rest]

    def finish(self, reason: str) -> str:
        return "tool_calls" if self._calls and reason == "stop" else reason

    # Each mode takes what it can from `_held` and says whether another has to go on.

    def _start(self, out: list[Delta]) -> bool:
        begin = self._held.lstrip()
        if not begin or (THINK.startswith(begin) and begin != THINK):
            return False
        if begin.startswith(THINK):
            self._held = begin[len(THINK) :]
            self._mode = "think"
        elif self._tools and begin[0] in "{[":
            self._mode = "rest"
        else:
            self._mode = "text" if self._tools else "plain"
            if not self._tools:
                out.append(self._held)
                self._held = ""
                return False
        return True

    def _think(self, out: list[Delta]) -> bool:
        if not self._thought:
            self._held = self._held.lstrip("\n")
        before, found = self._split((THOUGHT,))
        if before:
            self._thought = True
            out.append({"reasoning": before})
        if found:
            self._mode = "after"
        return bool(found)

    def _after(self, out: list[Delta]) -> bool:
        """White space between reasoning, calls and answer belongs to none of them."""
        self._held = self._held.lstrip()
        self._mode = ("text" if self._tools else "plain") if self._held else "after"
        if self._mode == "plain":
            out.append(self._held)
            self._held = ""
        return self._mode == "text"

    def _text(self, out: list[Delta]) -> bool:
        before, found = self._split((CALL, CALLS, PYTHON))
        if before and not (found and not before.strip()):
            out.append(before)
        if found:
            self._mode = "call" if found == CALL else "rest"
        return bool(found)

    def _call(self, out: list[Delta]) -> bool:
        if CALLED not in self._held:
            return False
        body, _, self._held = self._held.partition(CALLED)
        out += self._called(body) or [CALL + body + CALLED]
        self._mode = "after"
        return True

    def _rest(self, out: list[Delta]) -> bool:
        """All that follows belongs to the calls; `end` reads it."""
        return False

    def _split(self, marks: Iterable[str]) -> tuple[str, str]:
        """Take from `_held` what comes before the first mark, and the mark if it is there."""
        found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            before, self._held = self._held[:at], self._held[at + len(mark) :]
            return before, mark
        keep = max(_overlap(self._held, mark) for mark in marks)
        end = len(self._held) - keep
        before, self._held = self._held[:end], self._held[end:]
        return before, ""

    def _called(self, body: str) -> list[Delta]:
        calls = [call for value in _values(body) if (call := self._one(value))]
        if not self._several:
            calls = calls[: max(0, 1 - self._calls)]
        for call in calls:
            call["index"] = self._calls
            self._calls += 1
        return [{"tool_calls": calls}] if calls else []

    def _one(self, value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return None
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if name not in self._tools or not isinstance(arguments, (dict, str)):
            return None
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {
            "index": 0,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` begin `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def _values(text: str) -> list[Any]:
    """The JSON values in `text`, one after the other, lists taken apart; what is no JSON is
    passed over."""
    found: list[Any] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        starts = [i for i in (text.find("{", at), text.find("[", at)) if i >= 0]
        if not starts:
            break
        try:
            value, at = decoder.raw_decode(text, min(starts))
        except (ValueError, RecursionError):
            at = min(starts) + 1
            continue
        found += value if isinstance(value, list) else [value]
    return found
