"""What shape an answer must have, as GBNF."""

from __future__ import annotations

import json
from typing import Any

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Generate


def of(task: Generate) -> str | None:
    """The grammar of a task's answer, None if it is free. Raises: BadRequest."""
    if task.grammar is not None and task.json_schema is not None:
        raise BadRequest("grammar and json_schema exclude each other", param="grammar")
    if task.grammar is not None:
        return task.grammar
    if task.json_schema is not None:
        return from_schema(task.json_schema)
    return None


def from_schema(schema: dict[str, Any]) -> str:
    """GBNF of the JSON values a schema allows; {} allows any object. Raises: BadRequest."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text: str = json_schema_to_gbnf(json.dumps(schema or {"type": "object"}))
    except Exception as e:  # the converter raises what it likes on schemas it does not know
        raise BadRequest(f"the JSON schema cannot be used: {e}", param="json_schema") from e
    return text
