"""OpenAI's request bodies to tasks.

Unknown fields are ignored, as OpenAI-compatible servers do; known ones are checked; those that
would change the answer's meaning and cannot be honoured are refused by name.
Source: OpenAI API reference (chat, completions, embeddings); llama-server's and vLLM's extensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat, Complete, Embed, Task
from uml.supervisor.api.fields import Fields, is_tokens, wrong
from uml.supervisor.api.generation import read_generate, read_stream
from uml.supervisor.api.messages import read_messages, read_tools

if TYPE_CHECKING:
    from uml.supervisor.config import ModelConfig

#: llama-server's; all but "none" tell reasoning from the answer.
_REASONING = ("auto", "none", "deepseek")
_MAX_PROMPTS = 128
_MAX_INPUTS = 65536
#: Texts of one `Embed`: other requests get their turn between two of them.
EMBED_SLICE = 256
#: OpenAI's default for completions.
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """tasks: run side by side, their choices counted on. width: choices of each task (embeddings:
    inputs of a full slice). inputs: to embed, in all. encoding: of vectors, "float" or "base64"."""

    tasks: list[Task]
    width: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    inputs: int = 0
    encoding: str = "float"


def read_chat(body: Mapping[str, Any], model_id: str, own: ModelConfig) -> Asked:
    """Body of POST /v1/chat/completions. own: what the configuration says of the model."""
    fields = Fields(body)
    _refuse(fields, "functions", "function_call", why="use 'tools' and 'tool_choice'")
    _refuse(fields, "audio", "web_search_options")
    for index, modality in enumerate(fields.array("modalities") or []):
        if modality != "text":
            raise wrong(f"modalities[{index}]", "text, the only modality served here", modality)
    stream, usage = read_stream(body)
    options = dict(fields.table("chat_template_kwargs") or {})
    effort = fields.text("reasoning_effort", limit=40)
    if effort:
        options.setdefault("reasoning_effort", effort)
    task = Chat(
        **read_generate(body, own.sampling),
        messages=read_messages(fields, model_id, own.system_prompt),
        **read_tools(fields),
        top_logprobs=_chat_logprobs(fields),
        reasoning_format=fields.choice("reasoning_format", *_REASONING) or "auto",
        template_options=options,
    )
    return Asked([task], task.n, stream, usage, task.top_logprobs is not None)


def read_completion(body: Mapping[str, Any], own: ModelConfig) -> Asked:
    """Body of POST /v1/completions; each prompt becomes a task."""
    fields = Fields(body)
    stream, usage = read_stream(body)
    common = read_generate(body, own.sampling)
    best_of = fields.whole("best_of", low=1, high=20)
    if best_of is not None and best_of != common["n"]:
        raise BadRequest("'best_of' other than 'n' is not supported", param="best_of")
    if common["max_tokens"] is None and fields.raw("max_tokens", "n_predict")[1] is None:
        common["max_tokens"] = _COMPLETION_TOKENS
    common["top_logprobs"] = fields.whole("logprobs", low=0, high=20)
    common["suffix"] = fields.text("suffix")
    common["echo"] = fields.flag("echo") or False
    fields.required("prompt")
    tasks = [Complete(**common, prompt=p) for p in _texts_or_tokens(fields, "prompt", _MAX_PROMPTS)]
    return Asked([*tasks], common["n"], stream, usage, common["top_logprobs"] is not None)


def read_embedding(body: Mapping[str, Any]) -> Asked:
    """Body of POST /v1/embeddings; large batches become several tasks."""
    fields = Fields(body)
    fields.required("input")
    encoding = fields.choice("encoding_format", "float", "base64") or "float"
    dimensions = fields.whole("dimensions", low=1, high=1 << 20)
    inputs = _texts_or_tokens(fields, "input", _MAX_INPUTS)
    for index, text in enumerate(inputs):
        if text == "":
            where = f"input[{index}]" if isinstance(body["input"], list) else "input"
            raise wrong(where, "a text that is not empty", "")
    slices = range(0, len(inputs), EMBED_SLICE)
    tasks: list[Task] = [Embed(inputs[i : i + EMBED_SLICE], dimensions) for i in slices]
    return Asked(tasks, EMBED_SLICE, inputs=len(inputs), encoding=encoding)


def _texts_or_tokens(fields: Fields, name: str, most: int) -> list[Any]:
    """A text, texts, tokens, or lists of tokens, as a list of texts and lists of tokens."""
    param, value = fields.raw(name)
    if isinstance(value, str) or is_tokens(value):
        return [value]
    wanted = "a string, a list of strings, a list of token ids or a list of such lists"
    if not isinstance(value, list) or not value:
        raise wrong(param, wanted + ", not empty", value)
    if len(value) > most:
        raise BadRequest(f"'{param}' has {len(value)} entries, {most} are accepted", param=param)
    for index, item in enumerate(value):
        if not isinstance(item, str) and not is_tokens(item):
            raise wrong(f"{param}[{index}]", wanted, item)
    return value


def _chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs") or False
    top = fields.whole("top_logprobs", low=0, high=20)
    if top is not None and not wanted:
        raise BadRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    return (top or 0) if wanted else None


def _refuse(fields: Fields, *names: str, why: str = "") -> None:
    for name in names:
        param, value = fields.raw(name)
        if value is not None and value != []:
            reason = f": {why}" if why else ""
            raise BadRequest(f"'{param}' is not supported{reason}", param=param)
