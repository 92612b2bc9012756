"""The backends that come with us, through the door everybody uses."""

from __future__ import annotations

from uml.plugins.hooks import Registry
from uml.protocol.models import BackendSpec

LLAMA_CPP = BackendSpec(
    name="llama_cpp",
    worker="uml.workers.backends.llama_cpp:LlamaCpp",
    description="GGUF models by llama.cpp: chat, completion, embeddings",
    formats=("gguf",),
    tasks=("chat", "complete", "embed"),
    devices=("cpu", "cuda", "metal"),
    requirements=("llama-cpp-python==0.3.36",),
    imports="llama_cpp",
    source_build=("llama-cpp-python",),
    # How long an idle OpenMP thread spins before it sleeps, read when the library is imported.
    # The default spins for ever and starves every other process on a busy machine; "passive"
    # sleeps at once and costs a quiet machine two thirds of its speed.
    environ={"GOMP_SPINCOUNT": "10000"},
    process_bytes=96 * 1024 * 1024,
    licence="MIT",
    priority=10,
)

FAKE = BackendSpec(
    name="fake",
    worker="uml.workers.backends.fake:Fake",
    description="misbehaves on command",
    formats=("fake",),
    tasks=("chat", "complete", "embed"),
    devices=("cpu", "fake"),
    process_bytes=32 * 1024 * 1024,
    licence="Apache-2.0",
    hidden=True,
)


def register(registry: Registry) -> None:
    """Called by the loader, like any plugin's."""
    registry.backend(LLAMA_CPP)
    registry.backend(FAKE)
