"""OpenAI's messages to what chat templates expect: pure.

Templates are written for Hugging Face's convention: content is a string, a tool call's arguments
are a map.
"""

from __future__ import annotations

import json
from typing import Any

from uml.protocol.errors import BadRequest, TaskNotSupported


def normalise(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of `messages` with content as text. Raises: BadRequest naming the message,
    TaskNotSupported for images and sound."""
    if not messages:
        raise BadRequest("messages is empty", param="messages")
    return [_message(message, i) for i, message in enumerate(messages)]


def merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages put in front of the next user message, for templates that know none."""
    merged: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            merged.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            merged.append(message)
    if waiting:
        merged.append({"role": "user", "content": "\n\n".join(waiting)})
    return merged


def arguments_as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls' arguments back as JSON text, for templates that paste them as they are."""
    return [
        {
            **message,
            "tool_calls": [
                {
                    **call,
                    "function": {
                        **call["function"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for call in message["tool_calls"]
            ],
        }
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _message(message: Any, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{where} is not a message with a role", param=where)
    role = "system" if message["role"] == "developer" else message["role"]
    out = {k: v for k, v in message.items() if v is not None}
    out |= {"role": role, "content": _content(message.get("content"), where)}
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [_call(call, f"{where}.tool_calls") for call in calls]
    return out


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where}.content is neither text nor a list of parts", param=where)
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise BadRequest(f"{where}.content holds a part that is not a map", param=where)
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise TaskNotSupported(f"this model reads text only, not {kind}", param=where)
        texts.append(str(part.get("text", part.get("refusal", ""))))
    return "\n".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{where} holds a call without a function name", param=where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as e:
            raise BadRequest(f"{where}: arguments are not JSON: {e}", param=where) from e
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}
