"""What gpt-oss writes (the harmony format): channels instead of tags. Pure.

`<|channel|>analysis<|message|>` is reasoning, `final` the answer, `commentary to=functions.NAME`
a call. Source: OpenAI, harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from uml.workers.backends.llama_cpp.calls import CallReader
from uml.workers.backends.llama_cpp.replies import overlap
from uml.workers.base import Delta

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL)
MARKS = (*_ENDS, MESSAGE, "<|constrain|>")
_CALLED = re.compile(r"to=functions\.([\w.:-]+)")


class ChannelReply:
    """Like `replies.ChatReply`."""

    def __init__(
        self, tools: Collection[str] = (), *, several: bool = True, split: bool = True
    ) -> None:
        self._known, self._several, self._split_off = frozenset(tools), several, split
        self._calls = CallReader(tools, several)
        self._held = ""
        self._mode = "start"

    def feed(self, text: str) -> list[Delta]:
        self._held += text
        out: list[Delta] = []
        while getattr(self, f"_{self._mode}")(out):
            pass
        return out

    def end(self) -> list[Delta]:
        rest, self._held = self._held, ""
        if self._mode == "call":
            return self._calls.finish()
        if self._mode in ("header", "between") or not rest:
            return []
        return [self._said(rest, self._mode == "analysis")]

    def finish(self, reason: str) -> str:
        return "tool_calls" if self._calls.count and reason == "stop" else reason

    def _start(self, out: list[Delta]) -> bool:
        """A model that does not speak harmony after all is let through."""
        begin = self._held.lstrip()
        if not begin or (CHANNEL.startswith(begin) and begin != CHANNEL):
            return False
        self._mode = "between" if begin.startswith(CHANNEL) else "final"
        return True

    def _between(self, out: list[Delta]) -> bool:
        _, found, rest = self._held.partition(CHANNEL)
        if found:
            self._held, self._mode = rest, "header"
        return bool(found)

    def _header(self, out: list[Delta]) -> bool:
        header, found, rest = self._held.partition(MESSAGE)
        if not found:
            return False
        self._held = rest
        called = _CALLED.search(header)
        if called and called[1] in self._known:
            self._mode = "call"
            self._calls.open("[TOOL_CALLS]")
            out += self._calls.feed(called[1] + "[ARGS]")[0]
        else:
            self._mode = "analysis" if header.strip().startswith("analysis") else "final"
        return True

    def _call(self, out: list[Delta]) -> bool:
        text, more = self._take()
        out += self._calls.feed(text)[0]
        return more

    def _body(self, out: list[Delta]) -> bool:
        reasoning = self._mode == "analysis"
        text, more = self._take()
        if text:
            out.append(self._said(text, reasoning))
        return more

    _analysis = _final = _body

    def _said(self, text: str, reasoning: bool) -> Delta:
        return {"reasoning": text} if reasoning and self._split_off else text

    def _take(self) -> tuple[str, bool]:
        """What comes before the next mark that ends a message, and whether there is one."""
        found = [(at, mark) for mark in _ENDS if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            text, self._held = self._held[:at], self._held[at:]
            if mark != CHANNEL:
                self._held = self._held[len(mark) :]
            self._mode = "between"
            return text, True
        end = len(self._held) - max(overlap(self._held, mark) for mark in _ENDS)
        text, self._held = self._held[:end], self._held[end:]
        return text, False
