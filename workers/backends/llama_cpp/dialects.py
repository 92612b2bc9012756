"""How the families of models write tool calls, recognised from their chat templates: pure.

A call is `head` NAME `middle` ARGUMENTS `tail`; all calls of an answer stand between `begin` and
`end` with `between` among them. Sources: the chat templates on the models' pages.
"""

# DeepSeek's marks are written with other bars than the rest.
# ruff: noqa: RUF001
from __future__ import annotations

from dataclasses import dataclass

_JSON = '{"name": "'
_ARGUMENTS = '", "arguments": '


@dataclass(frozen=True)
class Dialect:
    """mark: what tells a template of this family. trigger: what in an answer begins the calls,
    "" = an answer that begins with `{` is one. parallel: it can write several."""

    name: str
    mark: str
    trigger: str
    head: str = _JSON
    middle: str = _ARGUMENTS
    tail: str = "}"
    begin: str = ""
    between: str = ", "
    end: str = ""
    parallel: bool = True


HERMES = Dialect(
    "hermes",  # Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4, and most fine-tunes of others
    mark="<tool_call>",
    trigger="<tool_call>",
    head='<tool_call>\n{"name": "',
    tail="}\n</tool_call>",
    between="\n",
)
#: Looked for in this order.
DIALECTS = (
    Dialect(  # gpt-oss
        "harmony",
        mark="<|channel|>",
        trigger="<|channel|>commentary to=functions.",
        head="<|channel|>commentary to=functions.",
        middle=" <|constrain|>json<|message|>",
        tail="",  # then comes <|call|>, which ends the answer
        parallel=False,
    ),
    Dialect(  # Mistral from Small 3.1 on
        "mistral-args",
        mark="[ARGS]",
        trigger="[TOOL_CALLS]",
        head="[TOOL_CALLS]",
        middle="[ARGS]",
        tail="",
        between="",
    ),
    Dialect(  # Mistral up to Nemo and Small 3
        "mistral-list",
        mark="[TOOL_CALLS]",
        trigger="[TOOL_CALLS]",
        begin="[TOOL_CALLS][",
        end="]",
    ),
    Dialect(  # DeepSeek V3 and R1
        "deepseek",
        mark="<｜tool▁calls▁begin｜>",
        trigger="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        middle="\n```json\n",
        tail="\n```<｜tool▁call▁end｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
    Dialect(  # Phi 4 mini
        "phi",
        mark="<|/tool_call|>",
        trigger="<|tool_call|>",
        begin="<|tool_call|>[",
        end="]<|/tool_call|>",
    ),
    Dialect(  # Granite 3
        "granite",
        mark="<|tool_call|>",
        trigger="<|tool_call|>",
        begin="<|tool_call|>[",
        end="]",
    ),
    Dialect(  # SmolLM2 and xLAM
        "list",
        mark="<tool_call>[",
        trigger="<tool_call>",
        begin="<tool_call>[",
        end="]</tool_call>",
    ),
    HERMES,
    Dialect(  # Llama 3.1 to 3.3
        "llama3",
        mark='"parameters":',
        trigger="",
        middle='", "parameters": ',
        parallel=False,
    ),
)
#: A template that gives tools to the model in a way nobody knows: most models understand it.
GENERIC = Dialect("generic", mark="", trigger="")


def recognise(template: str) -> Dialect:
    """The dialect of a chat template. One that knows no tools gets Hermes', because
    `tools.describe` explains that one to the model."""
    if not knows_tools(template):
        return HERMES
    return next((dialect for dialect in DIALECTS if dialect.mark in template), GENERIC)


def knows_tools(template: str) -> bool:
    return "tools" in template
