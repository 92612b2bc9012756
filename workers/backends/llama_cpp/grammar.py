"""What shape an answer must have, as GBNF."""

from __future__ import annotations

import json
import re
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat, Generate
from uml.workers.backends.llama_cpp.tools import call_form, call_schema, wanted


def of(task: Generate, template: str) -> str | None:
    """The grammar of a task's answer, None if it is free. template: the model's, which says how
    it writes tool calls. Raises: BadRequest."""
    call = _call(task, template) if isinstance(task, Chat) else None
    given = [task.grammar, task.json_schema, call]
    if sum(value is not None for value in given) > 1:
        raise BadRequest(
            "grammar, json_schema and a required tool exclude each other", param="grammar"
        )
    if task.json_schema is not None:
        return from_schema(task.json_schema or {"type": "object"}, "json_schema")
    return call or task.grammar


def from_schema(schema: dict[str, Any], param: str) -> str:
    """GBNF of the JSON values a schema allows. Raises: BadRequest."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text: str = json_schema_to_gbnf(json.dumps(schema))
    except Exception as e:  # the converter raises what it likes on schemas it does not know
        raise BadRequest(f"the JSON schema cannot be used: {e}", param=param) from e
    return text


def _call(task: Chat, template: str) -> str | None:
    tools = wanted(task.tools, task.tool_choice)
    if not tools:
        return None
    before, after, arguments = call_form(template)
    rules = from_schema(call_schema(tools, arguments), "tools")
    rules = re.sub(r"^root ::=", "call ::=", rules, flags=re.MULTILINE)
    return f"{rules}\nroot ::= {json.dumps(before)} call {json.dumps(after)}\n"
