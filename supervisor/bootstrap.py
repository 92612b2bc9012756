"""From a bare Python to a running command line, and from that to a machine with a model.

`start` is what `run.py` calls before any dependency is there: stdlib only, and imports where they
are used, since two interpreters pass through here on the way to any command. `up` is the
set-up behind the command of that name. Both touch no network when nothing is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uml.supervisor import installer
from uml.supervisor.installer import InstallError
from uml.supervisor.paths import cache_dir, home_dir

if TYPE_CHECKING:
    from uml.supervisor.config import Config

CHECKOUT = Path(__file__).resolve().parent.parent
#: Set across the re-exec, so that an environment that does not help is not entered for ever.
_ENTERED = "UML_ENTERED_VENV"
_READY = "uml-ready"
#: What `up` sets up.
STARTER_BACKEND = "llama_cpp"
STARTER_MODEL = "starter/chat"


def start(argv: list[str]) -> int:
    """Run the command line and return its exit code, re-executing in an environment of our own
    when this interpreter lacks a dependency. Some commands have a larger one than the rest."""
    entered = os.environ.pop(_ENTERED, "")
    extra = _extra(argv)
    wanted = requirements(extra) if extra else requirements()
    if not entered and unsatisfied(wanted):
        try:
            venv = ensure_venv(extra or "cli", wanted)
        except (InstallError, OSError) as e:
            print(f"setting up uml: {e}", file=sys.stderr)
            return 1
        os.environ[_ENTERED] = str(venv)
        sys.stdout.flush()
        python = str(installer.venv_python(venv))
        os.execv(python, [python, str(CHECKOUT / "run.py"), *argv])
    if extra == "test":
        from uml.supervisor.bootstrap_test import test

        return test(argv[1:])
    from uml.supervisor.cli import main

    return main(argv)


def _extra(argv: Sequence[str]) -> str:
    """The extra of `setup.cfg` that a command needs; "" = none."""
    if argv[:1] == ["pull"] and any(argument.startswith("hf:") for argument in argv):
        return "hf"
    return "test" if argv[:1] == ["test"] else ""


def up(
    config: Config,
    progress: Callable[[str, float | None], None],
    pulled: Callable[[str, int, int], None],
) -> None:
    """Install what a first answer needs: the llama_cpp backend and a chat model. Nothing that is
    there is touched. pulled: told (stage, bytes done, bytes in all) of a download.

    Raises: UmlError; in particular before anything is downloaded when a compiler is missing.
    """
    from uml.plugins.loader import load_specs
    from uml.supervisor.environments import Environments
    from uml.supervisor.pull import pull

    environments = Environments(config.home, cache_dir(), load_specs(config.home))
    environments.check_possible(STARTER_BACKEND)
    if not any((config.home / "models").glob("*.gguf")):
        pull(STARTER_MODEL, config.home, progress=pulled)
    environments.install(STARTER_BACKEND, progress)


def requirements(*extras: str) -> list[str]:
    """What `setup.cfg` asks for: the supervisor's own, and those of `extras`."""
    import configparser

    setup = configparser.ConfigParser(interpolation=None)
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    texts = [setup["options"]["install_requires"]]
    texts += [setup["options.extras_require"][extra] for extra in extras]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def unsatisfied(wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that this interpreter does not have in a version that fits."""
    return [requirement for requirement in wanted if not _satisfied(requirement)]


def _satisfied(requirement: str) -> bool:
    """Enough of the requirement language for setup.cfg: a name and >=, <, == with numbers."""
    import importlib.metadata

    name, *_ = re.split(r"[<>=!~ ]", requirement, maxsplit=1)
    try:
        have = _numbers(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    for relation, text in re.findall(r"(>=|<|==)\s*([\d.]+)", requirement):
        bound = _numbers(text)
        fits = {">=": have >= bound, "<": have < bound, "==": have[: len(bound)] == bound}
        if not fits[relation]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0]))


def ensure_venv(name: str, wanted: Sequence[str]) -> Path:
    """The environment `UML_HOME/supervisor/<name>-<stamp>` holding `wanted`, made when it is not
    there. The stamp covers the requirements and the interpreter, so that a change of either
    makes a new one. Raises: InstallError."""
    import hashlib

    python = installer.base_python()
    stamp = "\n".join([*wanted, sys.version, python])
    root = home_dir() / "supervisor"
    venv = root / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    if (venv / _READY).exists():
        return venv
    with installer.lock(root / f".{name}.lock", lambda: _say("waiting for another set-up")):
        if not (venv / _READY).exists():
            installer.require_venv()
            _say(f"making {venv} with {len(wanted)} packages, once")
            shutil.rmtree(venv, ignore_errors=True)
            log: list[str] = []
            installer.create_venv(venv, log.append)
            installer.install(venv, wanted, log.append)
            (venv / _READY).touch()
    return venv


def _say(text: str) -> None:
    """For people: never on stdout, which belongs to the command that was asked for."""
    print(text, file=sys.stderr, flush=True)
