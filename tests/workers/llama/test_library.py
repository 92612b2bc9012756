"""What a worker imports before it says hello, in an interpreter of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

#: Says what came in with the library, and whether all the rest can be had.
_SCRIPT = f"""
import sys
import threading
import types
package = types.ModuleType("uml")
package.__path__ = [{str(ROOT)!r}]
sys.modules["uml"] = package
from uml.workers.backends.llama_cpp import library
threading.Thread.start = lambda self: None  # the rest is imported below
versions = library.bring()
print(*(name in sys.modules for name in ("llama_cpp.llama", "numpy", "llama_cpp.llama_cpp")))
print(versions["llama-cpp-python"])
library._import_rest()
print(all(f"uml.workers.backends.llama_cpp.{{n}}" in sys.modules for n in library._REST))
import llama_cpp.llama_cpp
print(llama_cpp.llama_cpp.llama_max_devices() > 0)
"""


def test_hello_waits_for_the_low_level_calls_alone(llama_python: str) -> None:
    run = subprocess.run(
        [llama_python, "-I", "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    imported, versions, rest, works = run.stdout.splitlines()
    assert imported == "False False True"
    assert versions[0].isdigit()
    assert (rest, works) == ("True", "True"), run.stderr
