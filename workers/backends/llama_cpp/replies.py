"""What an answer's text is made of: text, reasoning and tool calls. Pure.

Recognised, wherever the text is cut: `<think>...</think>` at the beginning and, when the request
has tools, calls as `calls` reads them. gpt-oss has a language of its own: `channels`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from uml.workers.backends.llama_cpp.calls import TRIGGERS, CallReader
from uml.workers.base import Delta

THINK, THOUGHT = "<think>", "</think>"


class ChatReply:
    """tools: names that may be called; none = calls are not looked for. thinking: the prompt
    itself opened the reasoning. several: more than one call is wanted. split: reasoning is told
    from the text, else it stays in it."""

    def __init__(
        self,
        tools: Collection[str] = (),
        *,
        thinking: bool = False,
        several: bool = True,
        split: bool = True,
    ) -> None:
        self._calls = CallReader(tools, several) if tools else None
        self._split_off = split
        self._mode = "think" if thinking else "start"
        self._held = ""
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
        if self._mode == "call" and self._calls:
            return self._calls.finish()
        if not rest:
            return []
        return [self._reasoning(rest)] if self._mode == "think" else [rest]

    def finish(self, reason: str) -> str:
        called = self._calls is not None and self._calls.count
        return "tool_calls" if called and reason == "stop" else reason

    # Each mode takes what it can from `_held` and says whether another has to go on.

    def _start(self, out: list[Delta]) -> bool:
        begin = self._held.lstrip()
        if not begin or (THINK.startswith(begin) and begin != THINK):
            return False
        if begin.startswith(THINK):
            if not self._split_off:
                out.append(THINK)
            self._held = begin[len(THINK) :]
            self._mode = "think"
            return True
        return self._answer(out)

    def _think(self, out: list[Delta]) -> bool:
        if not self._thought and self._split_off:
            self._held = self._held.lstrip("\n")
        before, found = self._split((THOUGHT,))
        if before:
            self._thought = True
            out.append(self._reasoning(before))
        if found:
            if not self._split_off:
                out.append(THOUGHT)
            self._mode = "after"
        return bool(found)

    def _reasoning(self, text: str) -> Delta:
        return {"reasoning": text} if self._split_off else text

    def _after(self, out: list[Delta]) -> bool:
        """White space between reasoning and answer belongs to neither."""
        begin = self._held.lstrip()
        if not begin:
            return False
        if self._split_off:
            self._held = begin
        return self._answer(out)

    def _answer(self, out: list[Delta]) -> bool:
        """The answer proper begins."""
        if self._calls is None:
            self._mode = "plain"
            out.append(self._held)
            self._held = ""
            return False
        bare = self._held.lstrip()[:1] in "{["
        self._mode = "call" if bare else "text"
        if bare:
            self._calls.open("")
        return True

    def _text(self, out: list[Delta]) -> bool:
        before, found = self._split(TRIGGERS)
        if before and not (found and not before.strip()):
            out.append(before)
        if found and self._calls:
            self._calls.open(found)
            self._mode = "call"
        return bool(found)

    def _call(self, out: list[Delta]) -> bool:
        assert self._calls is not None
        text, self._held = self._held, ""
        deltas, rest = self._calls.feed(text)
        out += deltas
        if rest is None:
            return False
        # What is no call goes on as text; a mark in its front is not looked at again.
        self._mode = "text"
        mark = next((mark for mark in TRIGGERS if rest.startswith(mark)), "")
        if mark:
            out.append(mark)
        self._held = rest[len(mark) :]
        return True

    def _split(self, marks: Iterable[str]) -> tuple[str, str]:
        """Take from `_held` what comes before the first mark, and the mark if it is there."""
        found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            before, self._held = self._held[:at], self._held[at + len(mark) :]
            return before, mark
        keep = max(overlap(self._held, mark) for mark in marks)
        end = len(self._held) - keep
        before, self._held = self._held[:end], self._held[end:]
        return before, ""


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` begin `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
