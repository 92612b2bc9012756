"""Tasks a model can be asked to do, and their parameters.

The gateway validates a client's body into one of these; `to_wire` makes the `params` of a
`Request`; the worker reads them back with `read`. The table is open: a plugin registers more
with `register`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from uml.protocol.errors import ProtocolError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled", "error"]


class Body(Protocol):
    """Bytes that are sent with a task, any number of times. size: how many they are."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, count: int) -> bytes: ...


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. cached_tokens: prompt tokens that were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


#: The order of samplers. Source: llama.cpp, common_params_sampling.
SAMPLERS = (
    *("penalties", "dry", "top_n_sigma", "top_k", "typ_p"),
    *("top_p", "min_p", "xtc", "temperature", "adaptive_p"),
)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are the OpenAI API's: temperature 1, nothing else.

    A value that means "off" switches its sampler off: top_k 0, top_p 1, min_p 0, typical_p 1,
    top_n_sigma -1, repeat_penalty 1, penalties 0, xtc_probability 0, dry_multiplier 0, mirostat 0,
    dynatemp_range 0, adaptive_target -1. penalty_last_n, dry_penalty_last_n: tokens looked back at,
    -1 = the context. samplers: which ones, in which order, of `SAMPLERS` and "infill".
    min_keep: samplers that cut leave so many tokens. logit_bias: token id (as a string, JSON's
    keys) -> bias. seed: None = a random one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    penalty_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: list[str] = field(default_factory=lambda: ["\n", ":", '"', "*"])
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: list[str] = field(default_factory=lambda: list(SAMPLERS))
    logit_bias: dict[str, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Task:
    """Base. `name` is the task's verb: the Backend method that does it. `bulk` names a field whose
    bytes travel beside the parameters, as the request's body: a `Body` in the supervisor, an open
    binary file in the worker."""

    name: ClassVar[str] = ""
    bulk: ClassVar[str] = ""

    def to_wire(self) -> dict[str, Any]:
        """A map that `read` turns back; it shares lists and maps with the task."""
        wire = dict(self.__dict__)
        wire.pop(self.bulk, None)
        return wire


@dataclass(frozen=True)
class Generate(Task):
    """What chat and completion share. max_tokens: None = until the context is full.
    stop: strings that end a choice and are not part of it. top_logprobs: None = no logprobs,
    0..20 alternatives otherwise. grammar: GBNF text. json_schema: a schema the output obeys
    ({} = any JSON object). ignore_eos: go on to max_tokens (benchmarks). seeded: the client chose
    the seed, so the answer is to be the same each time, down to the rounding."""

    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    ignore_eos: bool = False
    seeded: bool = False

    def to_wire(self) -> dict[str, Any]:
        return self.__dict__ | {"sampling": dict(self.sampling.__dict__)}


@dataclass(frozen=True)
class Chat(Generate):
    """messages: OpenAI's, content a string or a list of parts. tools, tool_choice: OpenAI's.
    template_options: extra variables for the chat template (`enable_thinking`, say).
    reasoning_format: "none" leaves reasoning in the text, anything else tells it apart."""

    name: ClassVar[str] = "chat"
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning_format: str = "auto"
    template_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Complete(Generate):
    """prompt: text, or token ids. echo: repeat the prompt before the answer."""

    name: ClassVar[str] = "complete"
    prompt: str | list[int] = ""
    suffix: str | None = None
    echo: bool = False


@dataclass(frozen=True)
class Embed(Task):
    """inputs: texts or token ids. Each vector comes as a chunk of that index,
    `{"vector": bytes}` with float32 little-endian, normalised to length 1.
    dimensions: cut vectors to this length and normalise again."""

    name: ClassVar[str] = "embed"
    inputs: list[Any] = field(default_factory=list)
    dimensions: int | None = None


@dataclass(frozen=True)
class Rerank(Task):
    name: ClassVar[str] = "rerank"
    query: str = ""
    documents: list[str] = field(default_factory=list)
    top_n: int | None = None


@dataclass(frozen=True)
class Speak(Task):
    """Text to speech; chunks are `bytes` of a file of `format` (mp3, opus, aac, flac, wav), or
    s16le mono at 24 kHz ("pcm"). voice: a speaker of the model, None = its first. speed: 1.0 = the
    voice's own. The result has `duration` (seconds) and `characters`."""

    name: ClassVar[str] = "speak"
    text: str = ""
    voice: str | None = None
    speed: float = 1.0
    format: str = "pcm"


@dataclass(frozen=True)
class Transcribe(Task):
    """Speech to text, a chunk per segment: `{"text", "segment": {...}, "progress": 0..1}`.

    audio: a file of any container the backend decodes, or, with `rate` (samples per second), bare
    s16le mono. language: ISO 639-1, None = found out. translate: into English. words: segments
    have their words with times. details: they have confidences, too. limit_s: longer audio is
    refused. The result has `language` and `duration` (seconds).
    """

    name: ClassVar[str] = "transcribe"
    bulk: ClassVar[str] = "audio"
    audio: Any = None
    rate: int | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    translate: bool = False
    words: bool = False
    details: bool = False
    limit_s: float = 4 * 3600.0


@dataclass(frozen=True)
class Describe(Task):
    """Images and a question to text."""

    name: ClassVar[str] = "describe"
    images: list[bytes] = field(default_factory=list)
    prompt: str = ""
    max_tokens: int | None = None


TASKS: dict[str, type[Task]] = {}
T = TypeVar("T", bound=Task)


def register(cls: type[T]) -> type[T]:
    """Make a task known by its name. Raises: ValueError when the name is taken."""
    if not cls.name or TASKS.get(cls.name, cls) is not cls:
        raise ValueError(f"task name {cls.name!r} is empty or taken")
    TASKS[cls.name] = cls
    return cls


for _cls in (Chat, Complete, Embed, Rerank, Speak, Transcribe, Describe):
    register(_cls)


def read(name: str, params: dict[str, Any]) -> Task:
    """The task that `to_wire` described; unknown keys are ignored.

    Raises: ProtocolError for an unknown task or parameters that do not build one.
    """
    cls = TASKS.get(name)
    if cls is None:
        raise ProtocolError(f"unknown task {name[:40]!r}")
    known = {f.name for f in dataclasses.fields(cls)}
    values = {k: v for k, v in params.items() if k in known}
    sampling = values.get("sampling")
    try:
        if isinstance(sampling, dict):
            names = {f.name for f in dataclasses.fields(Sampling)}
            values["sampling"] = Sampling(**{k: v for k, v in sampling.items() if k in names})
        return cls(**values)
    except TypeError as e:
        raise ProtocolError(f"{name}: {e}") from e
