"""Reads tool calls out of an answer's text as it comes, and sends their arguments on at once. Pure.

Reads the calls of all families (`dialects`), whichever the model was taught: `{"name": ...,
"arguments": {...}}`, one or a list of them, and `name[ARGS]{...}`.
"""

# DeepSeek's marks are written with other bars than the rest.
# ruff: noqa: RUF001
from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

from uml.workers.base import Delta

#: What begins calls in the middle of a text.
TRIGGERS = (
    *("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>"),
    "<｜tool▁calls▁begin｜>",
)
_OPEN = (*TRIGGERS, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>")
_CLOSE = (
    *("</tool_call>", "<|/tool_call|>", "```", "<｜tool▁call▁end｜>"),
    "<｜tool▁calls▁end｜>",
)
#: Texts that may be single control tokens, which are not shown otherwise.
MARKS = (
    *_OPEN[:-1],
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "[ARGS]", "[CALL_ID]"),
    *(mark for mark in _CLOSE if mark != "```"),
)
_AROUND = " \t\r\n,;[]"

_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED = re.compile(r"([\w.:-]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\]|\s*```json)?\s*(?=\{)")
_MAYBE_NAMED = re.compile(r"[\w.:-]*(\[[^{]*|\s*(`{0,3}|```json\s*|```j|```js|```jso))")
_FIRST_KEY = re.compile(r'\{\s*"([^"]*)')
_KEYS = ("name", "arguments", "parameters", "type", "function", "id")


class CallReader:
    """known: names that may be called. several: more than one call is wanted; the others are read
    and left out."""

    def __init__(self, known: Collection[str], several: bool = True) -> None:
        self._known, self._several = frozenset(known), several
        #: Calls sent so far.
        self.count = 0
        self.open("")

    def open(self, trigger: str) -> None:
        """Calls begin; `trigger` is what said so, and becomes text when there are none."""
        #: What has to be shown if there are no calls.
        self._raw, self._held = trigger, ""
        self._called = False
        self._mode = "between"
        self._fresh = True
        self._nested = False
        self._end = _End()

    def feed(self, text: str) -> tuple[list[Delta], str | None]:
        """Deltas, and the text after the calls once they are over (None before)."""
        self._held += text
        out: list[Delta] = []
        while self._mode != "over":
            if not getattr(self, f"_{self._mode}")(out):
                return out, None
        return out, self._raw + self._held

    def finish(self) -> list[Delta]:
        """The answer is over; what was held back and is no call is text."""
        if self._mode in ("arguments", "tail"):
            return []
        rest = self._raw + self._held
        return [rest] if rest.strip(_AROUND) else []

    # Each mode takes what it can from `_held` and says whether another has to go on.

    def _between(self, out: list[Delta]) -> bool:
        while self._held:
            mark = next((m for m in (*_OPEN, *_CLOSE) if self._held.startswith(m)), None)
            if mark:
                self._fresh = mark in _OPEN
            elif any(m.startswith(self._held) for m in (*_OPEN, *_CLOSE)):
                return False
            elif self._held[0] in _AROUND:
                mark = self._held[0]
            elif self._held[0] == "{":
                self._mode, self._end = "object", _End()
                return True
            elif self._fresh:
                self._mode = "named"
                return True
            else:
                self._mode = "over"
                return True
            self._held = self._held[len(mark) :]
            if not self._called:
                self._raw += mark
        return False

    def _named(self, out: list[Delta]) -> bool:
        found = _NAMED.match(self._held)
        if found and found[1] in self._known:
            self._begin(out, found[1], found.end())
            return True
        if not found and _MAYBE_NAMED.fullmatch(self._held) and self._may_be_known():
            return False
        self._mode = "over"
        return True

    def _may_be_known(self) -> bool:
        """Whether the name at the beginning is a known one, or may become one."""
        name = re.split(r"[^\w.:-]", self._held, maxsplit=1)[0]
        if len(name) < len(self._held):
            return name in self._known
        return any(known.startswith(name) for known in self._known)

    def _object(self, out: list[Delta]) -> bool:
        found = _HEAD.match(self._held)
        if found:
            if found[1] not in self._known:
                self._mode = "over"
                return True
            self._begin(out, found[1], found.end())
            self._nested = True
            return True
        key = _FIRST_KEY.match(self._held)
        if key and not any(k.startswith(key[1]) for k in _KEYS):
            self._mode = "over"
            return True
        end = _End().find(self._held)
        if end < 0:
            return False
        call = self._whole(self._held[:end])
        if call is None:
            self._mode = "over"
            return True
        self._send(out, *call)
        self._held = self._held[end:]
        self._fresh, self._mode = False, "between"
        return True

    def _begin(self, out: list[Delta], name: str, at: int) -> None:
        self._held = self._held[at:]
        self._mode, self._nested = "arguments", False
        self._end = _End()
        self._send(out, name, "")

    def _arguments(self, out: list[Delta]) -> bool:
        end = self._end.find(self._held)
        piece = self._held if end < 0 else self._held[:end]
        if piece and self._wanted:
            out.append(
                {"tool_calls": [{"index": self.count - 1, "function": {"arguments": piece}}]}
            )
        self._held = self._held[len(piece) :]
        if end < 0:
            return False
        self._mode, self._end = "tail", _End(depth=1)
        return True

    def _tail(self, out: list[Delta]) -> bool:
        """What the object of the call holds after its arguments."""
        if self._nested:
            end = self._end.find(self._held)
            self._held = self._held[end:] if end >= 0 else ""
            if end < 0:
                return False
        self._fresh, self._mode = False, "between"
        return True

    @property
    def _wanted(self) -> bool:
        return self._several or self.count == 1

    def _send(self, out: list[Delta], name: str, arguments: str) -> None:
        self.count += 1
        self._raw, self._called = "", True
        if not self._wanted:
            return
        call = {
            "index": self.count - 1,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        out.append({"tool_calls": [call]})

    def _whole(self, text: str) -> tuple[str, str] | None:
        """(name, arguments) of a call in any order and shape; None for other objects."""
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(value.get("function"), dict):
            value = value["function"]
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if name not in self._known or not isinstance(arguments, (dict, str)):
            return None
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return name, arguments


class _End:
    """Looks for the bracket that closes a JSON value, in pieces. depth: brackets open before."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._quoted = self._escaped = False

    def find(self, text: str) -> int:
        """Where the value ends in `text`, -1 when it goes on; call with what follows then."""
        for i, char in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._quoted = False
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    return i + 1
        return -1
