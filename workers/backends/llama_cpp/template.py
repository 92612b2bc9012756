"""The model's own chat template, rendered in a sandbox.

A template comes with the file, from a stranger: it can compute strings and nothing else.
Source: Hugging Face transformers, utils/chat_template_utils.py (the names a template may use).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.sandbox

from uml.protocol.errors import BadRequest
from uml.workers.backends.llama_cpp.messages import arguments_as_text, merge_system

#: Marks an answer's tokens for training; means nothing here.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


class ChatTemplate:
    """source: Jinja text. bos, eos: the texts of these tokens. Raises: BadRequest when `source`
    is no template."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        self.source = source
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = _now
        self._fixed = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = env.from_string(_GENERATION.sub("", source))
        except jinja2.TemplateError as e:
            raise BadRequest(f"the model's chat template is broken: {e}") from e

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """The prompt for the next answer. messages: normalised. options: further variables.

        A template may refuse: one that knows no system role gets the text in the user's message,
        one that wants tool arguments as text gets text. Raises: BadRequest in the template's words.
        """
        refusal: Exception | None = None
        for attempt in _attempts(messages):
            try:
                text: str = self._template.render(
                    {
                        "documents": None,
                        "add_generation_prompt": True,
                        **(options or {}),
                        **self._fixed,
                        "tools": tools or None,
                        "messages": attempt(),
                    }
                )
                return text
            except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as e:
                refusal = refusal or e
        raise BadRequest(f"the model's chat template refuses: {refusal}", param="messages")


def _attempts(
    messages: list[dict[str, Any]],
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    yield lambda: messages
    if any(message.get("tool_calls") for message in messages):
        yield lambda: arguments_as_text(messages)
    if any(message["role"] == "system" for message in messages):
        yield lambda: merge_system(messages)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without Jinja's HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
