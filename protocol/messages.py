"""The vocabulary: one frozen dataclass per message, `pack` and `parse` for the wire.

Unknown keys are ignored (a newer peer may add some), missing keys take the default, a wrong
type or an unknown message is a `ProtocolError`.

`Chunks.items` is the hot path, one frame per decode step for all sequences: each item is
`[request id, choice index, delta]`, where delta is a `str` (plain text), `bytes` (audio) or a map
for everything rarer: `{"text", "logprobs": [{"token", "logprob", "bytes", "top"}]}`,
`{"reasoning"}`, `{"tool_calls"}` (OpenAI's shape), `{"vector"}`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Union

import msgpack

from uml.protocol import WIRE_VERSION, frames
from uml.protocol.errors import ProtocolError


@dataclass(frozen=True)
class Message:
    """Base; `t` is the type's name on the wire."""

    t: ClassVar[str] = ""


# --- to the worker -------------------------------------------------------------------------


@dataclass(frozen=True)
class Load(Message):
    """Load this model. files: absolute paths, main file first. lease: device -> bytes granted.
    options: backend options, already decided (n_ctx, slots, ...). threads: cores leased.
    environ: variables to set before the library looks for devices."""

    t: ClassVar[str] = "load"
    model: str
    files: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    lease: dict[str, int] = field(default_factory=dict)
    threads: int = 1
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepare(Message):
    """This model is likely to be loaded next; its lease has not come yet. files: as of `Load`."""

    t: ClassVar[str] = "prepare"
    files: list[str]


@dataclass(frozen=True)
class Request(Message):
    """Do a task. `params` is the task's map; with `parts` it is empty here and follows as
    `Part` frames holding the msgpack of it. With `body` the parts are the bytes of the task's
    bulk field. window: bytes the worker may send before credit."""

    t: ClassVar[str] = "request"
    id: str
    task: str
    params: dict[str, Any] = field(default_factory=dict)
    parts: bool = False
    body: bool = False
    window: int = 256 * 1024


@dataclass(frozen=True)
class Part(Message):
    """A piece of a large payload; `last` completes it."""

    t: ClassVar[str] = "part"
    id: str
    data: bytes
    last: bool = False


@dataclass(frozen=True)
class Cancel(Message):
    """Stop this request; the worker answers `done` with finish reason "cancelled"."""

    t: ClassVar[str] = "cancel"
    id: str


@dataclass(frozen=True)
class Credit(Message):
    """The reader took `amount` bytes more; the request's generator may go on."""

    t: ClassVar[str] = "credit"
    id: str
    amount: int


@dataclass(frozen=True)
class Threads(Message):
    """From now on compute with so many threads, of a load too: the others are somebody else's."""

    t: ClassVar[str] = "threads"
    count: int


# --- from the worker -----------------------------------------------------------------------


@dataclass(frozen=True)
class Hello(Message):
    """The backend's library is imported; no model yet. pid: as the worker sees itself."""

    t: ClassVar[str] = "hello"
    backend: str
    pid: int
    protocol: list[int] = field(default_factory=lambda: list(WIRE_VERSION))
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress(Message):
    """Loading goes on. stage: "weights", "context", "warm-up"...; fraction: 0..1 or None."""

    t: ClassVar[str] = "progress"
    stage: str
    fraction: float | None = None


@dataclass(frozen=True)
class Ready(Message):
    """The model answers: it has decoded one token. slots: requests served at once.
    memory: device -> bytes that the library itself reports (weights, KV, compute)."""

    t: ClassVar[str] = "ready"
    slots: int
    facts: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunks(Message):
    """All output of one step; see the module's docstring for `items`."""

    t: ClassVar[str] = "chunks"
    items: list[Any]


@dataclass(frozen=True)
class Done(Message):
    """A request ended well. finish: one reason per choice ("stop", "length", "tool_calls",
    "cancelled"). usage: prompt_tokens, completion_tokens, cached_tokens. timings: seconds."""

    t: ClassVar[str] = "done"
    id: str
    finish: list[str] = field(default_factory=lambda: ["stop"])
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Error(Message):
    """A request failed, or, without `id`, the load did. error: `UmlError.to_wire`."""

    t: ClassVar[str] = "error"
    error: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Beat(Message):
    """One-way sign of life. progress: grows whenever work was done (steps, load callbacks)."""

    t: ClassVar[str] = "beat"
    busy: int = 0
    queue: int = 0
    progress: int = 0
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Log(Message):
    """A structured log line: an event name and fields."""

    t: ClassVar[str] = "log"
    level: str
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


TO_WORKER = (Prepare, Load, Request, Part, Cancel, Credit, Threads)
FROM_WORKER = (Hello, Progress, Ready, Chunks, Done, Error, Beat, Log)


def _accepted(hint: Any) -> tuple[type, ...]:
    """The runtime types a field takes: containers by their outer type, ints as floats too."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(t for part in typing.get_args(hint) for t in _accepted(part))
    if hint is Any:
        return (object,)
    if hint is float:
        return (float, int)
    return (typing.get_origin(hint) or hint,)


def _fields(cls: type[Message]) -> list[tuple[str, tuple[type, ...], bool]]:
    hints = typing.get_type_hints(cls)
    return [
        (
            f.name,
            _accepted(hints[f.name]),
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    ]


_CLASSES: dict[str, type[Message]] = {c.t: c for c in TO_WORKER + FROM_WORKER}
_FIELDS = {name: _fields(cls) for name, cls in _CLASSES.items()}


def to_map(message: Message) -> dict[str, Any]:
    """The map that goes into a frame."""
    out: dict[str, Any] = {"t": message.t}
    out.update(message.__dict__)
    return out


def pack(message: Message) -> bytes:
    """`message` as one frame. Raises: ProtocolError when too large or not packable."""
    return frames.encode(to_map(message))


def parse(data: dict[str, Any]) -> Message:
    """The message in a decoded frame. Raises: ProtocolError."""
    name = data.get("t")
    cls = _CLASSES.get(name) if isinstance(name, str) else None
    if cls is None or not isinstance(name, str):
        raise ProtocolError(f"unknown message type {str(name)[:40]!r}")
    values: dict[str, Any] = {}
    for key, accepted, required in _FIELDS[name]:
        if key not in data:
            if required:
                raise ProtocolError(f"{name}: {key} is missing")
            continue
        value = data[key]
        if not isinstance(value, accepted) or (
            isinstance(value, bool) and bool not in accepted and object not in accepted
        ):
            raise ProtocolError(f"{name}: {key} is {type(value).__name__}")
        values[key] = value
    return cls(**values)


def delta_bytes(delta: Any) -> int:
    """What a chunk's delta counts against its request's window; the same on both sides."""
    if isinstance(delta, str):
        return len(delta) if delta.isascii() else len(delta.encode())
    if isinstance(delta, (bytes, bytearray)):
        return len(delta)
    return len(msgpack.packb(delta, use_bin_type=True))
