"""What is said of models and backends: files, facts, estimates, specs. Plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelFile:
    """A model on disk. paths: absolute; a sharded model lists every shard, first one first.
    size_bytes: of all of them. mtime_ns: the newest."""

    paths: tuple[str, ...]
    format: str
    size_bytes: int
    mtime_ns: int

    @property
    def path(self) -> str:
        return self.paths[0]


@dataclass(frozen=True)
class ModelFacts:
    """What a model's header says, without loading it.

    type: llm | embedding | rerank | tts | stt | vision | multimodal. tasks: verbs it can do.
    head_count_kv: KV heads per layer (0 = a layer without attention). key_length, value_length:
    per head. sliding_window: tokens, 0 = none; swa_layers: which layers have it (same length as
    head_count_kv). context_length: what it was trained for. weights_bytes: sum of the tensors'
    bytes; embedding_bytes: of which token embeddings and output.
    """

    format: str
    type: str
    arch: str
    tasks: tuple[str, ...] = ()
    name: str = ""
    quantization: str = ""
    parameters: int = 0
    context_length: int = 0
    embedding_length: int = 0
    feed_forward_length: int = 0
    vocab_size: int = 0
    block_count: int = 0
    head_count: int = 0
    head_count_kv: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0
    sliding_window: int = 0
    swa_layers: tuple[bool, ...] = ()
    weights_bytes: int = 0
    embedding_bytes: int = 0
    recurrent: bool = False
    chat_template: str | None = None
    license: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a loaded model will need, by what needs them. process_bytes: interpreter, library and
    what the library keeps of the model besides, always host RAM; parked_bytes: RAM on top for what
    is kept only while there is room; mapped: weights are mmap'd files, hence page cache that can
    be reclaimed. projector_bytes, encoding_bytes: weights of a model's projector and its scratch
    for one image, needed on top by a backend that loads one. draft_bytes: of a draft model beside
    it, all but what the process keeps."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    process_bytes: int
    parked_bytes: int = 0
    mapped: bool = True
    arithmetic: str = ""
    projector_bytes: int = 0
    encoding_bytes: int = 0
    draft_bytes: int = 0

    @property
    def model_bytes(self) -> int:
        """Weights, KV and compute: what goes to the device."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.draft_bytes

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.process_bytes


@dataclass(frozen=True)
class BackendSpec:
    """What a backend says of itself. Read by the supervisor, which never imports the backend.

    worker: "module:Class" inside `uml.workers`, or "/abs/path/worker.py:Class" for plugins.
    formats, tasks, devices: what it can do ("cpu", "cuda", "rocm", "metal").
    requirements: pinned pip requirements of its own environment; empty = nothing to install.
    imports: the module whose import proves the environment. source_build: requirements that
    compile from source (their wheels are cached). environ: variables the worker starts with.
    process_bytes: RAM of a worker with the library imported and no model. licence: SPDX.
    cancel_s: how long a worker may take to end a request that was cancelled; one that takes longer
    is killed. hidden: not listed to users (tests).
    split: over several devices by "layers", or in equal "tensor" parts; "" = one device alone.
    offload: some layers may stay in RAM. context_bytes: what the driver takes on each accelerator
    for a process that uses it. share_option: the option by which the library is told which share
    of a device it may fill, for one that takes that at once.
    """

    name: str
    worker: str
    formats: tuple[str, ...]
    tasks: tuple[str, ...]
    description: str = ""
    devices: tuple[str, ...] = ("cpu",)
    requirements: tuple[str, ...] = ()
    imports: str = ""
    source_build: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    process_bytes: int = 64 * 1024 * 1024
    python: str = ">=3.10"
    licence: str = ""
    priority: int = 0
    cancel_s: float = 10.0
    hidden: bool = False
    split: str = ""
    offload: bool = False
    context_bytes: int = 0
    share_option: str = ""
