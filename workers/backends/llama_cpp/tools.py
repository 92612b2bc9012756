"""Tools of a request, and in the prompt of a model that knows none: pure.

Templates that know tools get them as they are. For others the tools are described in a system
message, in the form most models have seen (Hermes), and past calls are written out as text.
"""

from __future__ import annotations

import json
from typing import Any

from uml.protocol.errors import BadRequest
from uml.workers.backends.llama_cpp.dialects import HERMES

_DESCRIPTION = """You may call these functions:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as JSON, like this:
<tool_call>
{{"name": "the function's name", "arguments": {{}}}}
</tool_call>"""


def names(tools: list[dict[str, Any]]) -> list[str]:
    """Names of the functions. Raises: BadRequest for a tool that is none."""
    found = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise BadRequest(f"tools[{i}] is not a function with a name", param=f"tools[{i}]")
        found.append(name)
    return found


def wanted(
    tools: list[dict[str, Any]], choice: str | dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The tools of which one has to be called; none = the model is free. Raises: BadRequest."""
    if choice in (None, "auto", "none"):
        return []
    if choice == "required":
        if not tools:
            raise BadRequest("tool_choice is required, but there are no tools", param="tool_choice")
        return tools
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    found = [tool for tool, known in zip(tools, names(tools), strict=True) if known == name]
    if not found:
        raise BadRequest(f"tool_choice names no tool of the request: {choice}", param="tool_choice")
    return found


def describe(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a template that knows no tools: the same conversation in plain messages."""
    out = [_plain(message) for message in messages]
    if tools:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        text = _DESCRIPTION.format(tools=lines)
        if out[0]["role"] == "system":
            out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{text}"}
        else:
            out.insert(0, {"role": "system", "content": text})
    return out


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = HERMES.between.join(_call(call["function"]) for call in calls)
    return {"role": message["role"], "content": f"{message['content']}\n{written}".strip()}


def _call(function: dict[str, Any]) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f"{HERMES.head}{function['name']}{HERMES.middle}{arguments}{HERMES.tail}"
