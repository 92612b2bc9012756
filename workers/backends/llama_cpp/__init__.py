"""GGUF models by llama.cpp, on the low-level calls of llama-cpp-python.

Threads: `Preparer` turns tasks into token ids, `Engine` (or `EmbedEngine`) owns the context and is
the only one to touch it after loading. Importing this package needs neither llama_cpp nor numpy:
the modules that do are imported by `LlamaCpp.versions`.
"""

from uml.workers.backends.llama_cpp.backend import LlamaCpp

__all__ = ["LlamaCpp"]
