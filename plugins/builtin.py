"""The backends that come with us, through the door everybody uses."""

from __future__ import annotations

import dataclasses

from uml.plugins.hooks import Registry
from uml.protocol.models import BackendSpec

LLAMA_CPP = BackendSpec(
    name="llama_cpp",
    worker="uml.workers.backends.llama_cpp:LlamaCpp",
    description="GGUF models by llama.cpp: chat, completion, embeddings",
    formats=("gguf",),
    tasks=("chat", "complete", "embed"),
    devices=("cpu", "cuda", "metal"),
    requirements=("llama-cpp-python==0.3.36", "llguidance==1.9.1"),
    imports="llama_cpp",
    source_build=("llama-cpp-python",),
    # How often an idle OpenMP thread of a team spins before it sleeps; the worker shortens that
    # while others want the cores: `workers/backends/llama_cpp/spin.py`.
    #
    # Large buffers in huge pages: the KV cache is zeroed when it is made and its pages are given
    # back when the process ends, both on the way of every swap. Measured from one worker killed to
    # the next one's context, 16384 cells of SmolLM2, medians in ms: ended 82 -> 9, context 171 ->
    # 29; decoding and prompts stay the same. (A virtual machine whose host takes free memory back
    # pays at the first load instead: 330 against 160 there.)
    #
    # What is large and freed goes back at once, and threads share two heaps: after minutes of mixed
    # requests a worker of SmolLM2 had 732 MB of its own, half of glibc's heaps free, and 499 MB so.
    # Source: glibc manual, memory allocation tunables; other C libraries ignore them.
    environ={
        "GOMP_SPINCOUNT": "300000",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=2"
        ":glibc.malloc.mmap_threshold=1048576",
    },
    process_bytes=24 * 1024 * 1024,
    licence="MIT",
    priority=10,
    split="layers",
    offload=True,
    # Not measured here; what a first load really takes is learned.
    context_bytes=320 * 1024 * 1024,
)

WHISPER_CPP = BackendSpec(
    name="whisper_cpp",
    worker="uml.workers.backends.whisper_cpp:WhisperCpp",
    description="Whisper models by whisper.cpp: speech to text",
    formats=("whisper",),
    tasks=("transcribe",),
    requirements=("pywhispercpp==1.5.1", "av==18.1.0"),
    imports="_pywhispercpp",
    # Few: a call computes for long, and cannot look meanwhile whether others want the cores.
    environ={"GOMP_SPINCOUNT": "1000"},
    process_bytes=64 * 1024 * 1024,
    licence="MIT",
    # It cannot be stopped within half of a window's first look, which is long for large models.
    cancel_s=1.0,
)

PIPER = BackendSpec(
    name="piper",
    worker="uml.workers.backends.piper:Piper",
    description="Piper voices: text to speech",
    formats=("piper",),
    tasks=("speak",),
    requirements=("piper-tts==1.8.0", "av==18.1.0"),
    imports="piper",
    process_bytes=96 * 1024 * 1024,
    licence="GPL-3.0-or-later",
)

FAKE = BackendSpec(
    name="fake",
    worker="uml.workers.backends.fake:Fake",
    description="misbehaves on command",
    formats=("fake",),
    tasks=("chat", "complete", "embed", "speak", "transcribe"),
    devices=("cpu", "fake"),
    process_bytes=32 * 1024 * 1024,
    licence="Apache-2.0",
    hidden=True,
    split="layers",
)


#: Takes real memory of an NVIDIA device, where there is one.
FAKE_CUDA = dataclasses.replace(FAKE, name="fake_cuda", devices=("cuda",), priority=-1)


def register(registry: Registry) -> None:
    """Called by the loader, like any plugin's."""
    registry.backend(LLAMA_CPP)
    registry.backend(WHISPER_CPP)
    registry.backend(PIPER)
    registry.backend(FAKE)
    registry.backend(FAKE_CUDA)
