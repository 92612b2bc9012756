"""What form an answer must have: a grammar of the whole answer, reasoning and tool calls included.

Two languages: GBNF, llama.cpp's own, for grammars that come with a request; for everything else
llguidance's dialect of Lark, which holds JSON schemas as they are. Pure: nothing is compiled here.
Source: llguidance, docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat, Generate
from uml.workers.backends.llama_cpp import schema, tools
from uml.workers.backends.llama_cpp.dialects import Dialect

#: Whether an answer begins with reasoning: it cannot, it may, the prompt has begun it.
Thinking = Literal["no", "may", "begun"]
#: A grammar with this header is llguidance's, as llama-server has it.
_LARK = "%llguidance"
_MOST_CALLS = 32

_TEXT = r"TEXT: /(.|\n)*/"
#: Text that is no reasoning, which `head` takes.
_SAID = r"TEXT: /(.|\n)*/ & ~/<think>(.|\n)*/"
_THOUGHT = r'thought[lazy]: /(.|\n)*/ "</think>"'
_GAP = r"GAP: /\s{0,4}/"
_ANALYSIS = r'thought[lazy]: "<|channel|>analysis<|message|>" /(.|\n)*/ "<|end|><|start|>assistant"'


@dataclass(frozen=True)
class Form:
    """text: the grammar. gbnf: it is llama.cpp's own. param: the field it comes from."""

    text: str
    gbnf: bool
    param: str


def of(task: Generate, dialect: Dialect, thinking: Thinking) -> Form | None:
    """The form of a task's answer, None if it is free. Raises: BadRequest."""
    calls = _Calls.of(task, dialect) if isinstance(task, Chat) else None
    if sum(x is not None for x in (task.grammar, task.json_schema)) > 1:
        raise BadRequest("grammar and json_schema exclude each other", param="grammar")
    if task.grammar is not None:
        if calls is not None:
            raise BadRequest("a grammar and tools exclude each other", param="grammar")
        lark = task.grammar.lstrip().startswith(_LARK)
        return Form(task.grammar, not lark, "grammar")
    if task.json_schema is None and calls is None:
        return None
    rules = _reasoning(dialect, thinking)
    if calls is None:
        rules += ["body: answer", _answer(task.json_schema or _OBJECT, dialect)]
    elif calls.needed:
        rules += ["body: calls", *calls.rules()]
    elif task.json_schema is None:
        rules += ["body: calls | free", *calls.or_text(_SAID if thinking == "may" else _TEXT)]
    elif dialect.trigger:
        rules += ["body: calls | answer", *calls.rules(), _answer(task.json_schema, dialect)]
    else:
        rules += ["body: answer", calls.or_answer(task.json_schema)]
    text = "\n".join(["%llguidance {}", "start: head body", *rules, ""])
    return Form(text, False, "json_schema" if calls is None else "tools")


def _reasoning(dialect: Dialect, thinking: Thinking) -> list[str]:
    """Rules of `head`: what comes before the answer proper."""
    if dialect.name == "harmony":
        return ["head: thought?", _ANALYSIS]
    if thinking == "begun":
        return ["head: thought GAP", _THOUGHT, _GAP]
    if thinking == "may":
        return ['head: ("<think>" thought GAP)?', _THOUGHT, _GAP]
    return ['head: ""']


def _answer(given: dict[str, Any], dialect: Dialect) -> str:
    before = '"<|channel|>final<|message|>" ' if dialect.name == "harmony" else ""
    return f"answer: {before}json_answer\njson_answer: %json {schema.as_json(given)}"


_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class _Calls:
    """The calls an answer may, or must, consist of."""

    tools: list[dict[str, Any]]
    dialect: Dialect
    needed: bool
    several: bool

    @classmethod
    def of(cls, task: Chat, dialect: Dialect) -> _Calls | None:
        needed = tools.wanted(task.tools, task.tool_choice)
        if task.tool_choice == "none" or not task.tools:
            return None
        named = isinstance(task.tool_choice, dict)
        several = task.parallel_tool_calls and dialect.parallel and not named
        return cls(needed or task.tools, dialect, bool(needed), several)

    def rules(self) -> list[str]:
        """Rules of `calls`."""
        d = self.dialect
        return [f"calls: {_pattern(d.begin)} call {self._end}", *self._rest()]

    def or_text(self, text: str) -> list[str]:
        """Rules of `calls` and `free`, which is any text, but what begins a call has to go on as
        one. text: the terminal TEXT."""
        d = self.dialect
        if not d.trigger:
            first = text.replace("TEXT: /", r"TEXT: /[^\s{]")
            return [*self.rules(), "free: TEXT?", first]
        rest = (d.begin + d.head).removeprefix(d.trigger)
        count = range(len(self.tools))
        return [
            f"calls: trigger first {self._end}",
            f"trigger[lazy]: TEXT {json.dumps(d.trigger)}",
            "first: " + " | ".join(f"first_{i}" for i in count),
            "free: TEXT",
            text,
            *(self._call(f"first_{i}", rest, i) for i in count),
            *self._rest(),
        ]

    def or_answer(self, given: dict[str, Any]) -> str:
        """The rule of `answer` for calls that are bare JSON: one schema for both."""
        key = "parameters" if "parameters" in self.dialect.middle else "arguments"
        branches: list[Any] = [schema.moved(given, "/anyOf/0")]
        for tool in self.tools:
            function, place = tool["function"], f"/anyOf/{len(branches)}/properties/{key}"
            arguments = schema.moved(function.get("parameters") or _OBJECT, place)
            properties = {"name": {"const": function["name"]}, key: arguments}
            branches.append({"type": "object", "properties": properties, "required": ["name", key]})
        return f"answer: %json {schema.as_json({'anyOf': branches})}"

    @property
    def _end(self) -> str:
        """What follows the first call."""
        d = self.dialect
        more = f"({_pattern(d.between)} call){{0,{_MOST_CALLS - 1}}} " if self.several else ""
        return more + _pattern(d.end)

    def _rest(self) -> list[str]:
        count = range(len(self.tools))
        return [
            "call: " + " | ".join(f"call_{i}" for i in count),
            *(self._call(f"call_{i}", self.dialect.head, i) for i in count),
            *(f"args_{i}: %json {self._schema(i)}" for i in count),
        ]

    def _call(self, rule: str, head: str, i: int) -> str:
        name = self.tools[i]["function"]["name"]
        opening = _pattern(head + name + self.dialect.middle)
        return f"{rule}: {opening} args_{i} {_pattern(self.dialect.tail)}"

    def _schema(self, i: int) -> str:
        function = self.tools[i]["function"]
        lenient = function.get("strict") is not True
        return schema.as_json(function.get("parameters") or _OBJECT, lenient=lenient)


def _pattern(text: str) -> str:
    """A terminal that matches `text`, with or without its white space."""
    if not text:
        return ""
    parts = re.split(r"(\s+)", text)
    escaped = (r"\s?" if part.isspace() else _escape(part) for part in parts if part)
    return f"/{''.join(escaped)}/"


def _escape(text: str) -> str:
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text)
