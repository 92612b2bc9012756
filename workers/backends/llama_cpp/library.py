"""Brings the library in, early and no more of it than is used: every swap waits for it.

Measured, ms from the interpreter's start: `import llama_cpp` 108 to 172 (busy machine), most of it
numpy and the high-level classes; the low-level calls alone about 60 (quiet).
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

#: What a load and its first answer need besides, with numpy and Jinja. Each imports its own.
_REST = ("load", "engine", "prepare", "template")


def bring() -> dict[str, str]:
    """Import the low-level calls; the versions. What else is going to be needed is imported
    beside the load, which spends its time in the library. Raises: ImportError."""
    folder = _mount()
    low: Any = importlib.import_module("llama_cpp.llama_cpp")
    threading.Thread(target=_import_rest, name="imports", daemon=True).start()
    return {"llama-cpp-python": _version(folder), "llama.cpp": low.llama_version().decode()}


def _mount() -> Path:
    """Make the package without running its `__init__`, which imports all of it."""
    spec = importlib.machinery.PathFinder.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama-cpp-python is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("llama_cpp", package)
    return Path(package.__path__[0])


def _version(package: Path) -> str:
    """By the name of the installed distribution's folder: importlib.metadata takes 15 ms to
    import. Source: PyPA, Recording installed projects."""
    found = next(package.parent.glob("llama_cpp_python-*.dist-info"), None)
    return found.name.split("-")[1].removesuffix(".dist") if found else "unknown"


def _import_rest() -> None:
    try:
        for name in _REST:
            importlib.import_module(f"uml.workers.backends.llama_cpp.{name}")
    except ImportError:
        traceback.print_exc()  # whoever needs it fails in its own words
