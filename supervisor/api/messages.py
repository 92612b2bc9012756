"""A chat's messages and tools, checked and brought to one form."""

from __future__ import annotations

import re
from typing import Any

from uml.protocol.errors import BadRequest, TaskNotSupported
from uml.supervisor.api.fields import Fields, wrong
from uml.supervisor.api.schemas import check_schema

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_TOOLS = 128
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
#: Parts of a message that a text model cannot take.
_MEDIA = {
    "image_url": "images",
    "input_image": "images",
    "image": "images",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "files",
}


def read_messages(fields: Fields, model_id: str, system_prompt: str | None) -> list[dict[str, Any]]:
    """Messages with plain text contents; the model's own system prompt first, unless the request
    brings one. Raises: BadRequest, TaskNotSupported for media."""
    fields.required("messages")
    found = fields.array("messages") or []
    if not found:
        raise wrong("messages", "a list of at least one message", "")
    messages = [_message(m, f"messages[{i}]", model_id) for i, m in enumerate(found)]
    if system_prompt and not any(m["role"] == "system" for m in messages):
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def _message(raw: Any, where: str, model_id: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise wrong(where, "an object", raw)
    fields = Fields(raw, where)
    fields.required("role")
    role = fields.choice("role", *_ROLES) or ""
    message: dict[str, Any] = {
        # Templates know "system" and "tool"; the other two are OpenAI's newer and older names.
        "role": {"developer": "system", "function": "tool"}.get(role, role),
        "content": _content(*fields.raw("content"), model_id),
    }
    calls, path = fields.array("tool_calls"), fields.path("tool_calls")
    if calls:
        if role != "assistant":
            raise BadRequest(f"'{path}': only an assistant makes tool calls", param=path)
        message["tool_calls"] = [_call(c, f"{path}[{i}]") for i, c in enumerate(calls)]
    if message["content"] is None:
        if role != "assistant":
            fields.required("content")
        # Most templates would write "None".
        message["content"] = ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = fields.text(name)
        if value is not None:
            message[name] = value
    return message


def _content(where: str, value: Any, model_id: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, "a string or a list of parts", value)
    texts = []
    for index, part in enumerate(value):
        path = f"{where}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise wrong(path, "an object", part)
        inner = Fields(part, path)
        kind = inner.required_text("type")
        if kind in _MEDIA:
            raise TaskNotSupported(f"{model_id} takes no {_MEDIA[kind]}, only text", param=path)
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise wrong(f"{path}.type", "text", kind)
        name = "refusal" if kind == "refusal" else "text"
        inner.required(name)
        texts.append(inner.text(name) or "")
    return "\n".join(texts)


def _call(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise wrong(where, "an object", raw)
    fields = Fields(raw, where)
    fields.choice("type", "function")
    fields.required("function")
    function = Fields(fields.table("function") or {}, fields.path("function"))
    return {
        "id": fields.text("id") or "",
        "type": "function",
        "function": {
            "name": function.required_text("name"),
            "arguments": function.text("arguments") or "{}",
        },
    }


def read_tools(fields: Fields) -> dict[str, Any]:
    """`tools`, `tool_choice`, `parallel_tool_calls` as arguments of `Chat`. Raises: BadRequest."""
    tools = [_tool(t, f"tools[{i}]") for i, t in enumerate(fields.array("tools") or [])]
    if len(tools) > _MAX_TOOLS:
        raise BadRequest(f"'tools' has more than {_MAX_TOOLS} entries", param="tools")
    parallel = fields.flag("parallel_tool_calls")
    return {
        "tools": tools,
        "tool_choice": _tool_choice(fields, [t["function"]["name"] for t in tools]),
        "parallel_tool_calls": True if parallel is None else parallel,
    }


def _tool(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise wrong(where, "an object", raw)
    fields = Fields(raw, where)
    fields.choice("type", "function")
    fields.required("function")
    function = Fields(fields.table("function") or {}, fields.path("function"))
    name = function.required_text("name")
    if not _TOOL_NAME.fullmatch(name):
        raise wrong(function.path("name"), "letters, digits, '_', '-', '.', ':', up to 128", name)
    kept: dict[str, Any] = {"name": name}
    kept["description"] = function.text("description") or ""
    kept["parameters"] = function.table("parameters") or {"type": "object", "properties": {}}
    strict = function.flag("strict")
    if strict:
        check_schema(kept["parameters"], function.path("parameters"))
    return {"type": "function", "function": kept | ({"strict": strict} if strict else {})}


def _tool_choice(fields: Fields, names: list[str]) -> str | dict[str, Any] | None:
    param, choice = fields.raw("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return None if choice is None else str(choice)
    if not names:
        raise BadRequest("'tool_choice' needs 'tools'", param=param)
    if choice == "required":
        return "required"
    if not isinstance(choice, dict):
        raise wrong(param, "none, auto, required or a function", choice)
    inner = Fields(choice, param)
    inner.choice("type", "function")
    function = Fields(inner.table("function") or {}, f"{param}.function")
    name = function.required_text("name")
    if name not in names:
        raise wrong(f"{param}.function.name", "one of the tools: " + ", ".join(names), name)
    return {"type": "function", "function": {"name": name}}
