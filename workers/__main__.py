"""A worker's entry, started BY FILE with the backend environment's own Python:

    python -I -u .../workers/__main__.py uml.workers.backends.fake:Fake
    python -I -u .../workers/__main__.py /path/of/a/plugin/worker.py:Class

`-I` keeps our site-packages out of a foreign environment, so `uml` is mounted by hand: `protocol/`
and `workers/` are siblings in a checkout and in a wheel alike.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def _mount() -> None:
    package = types.ModuleType("uml")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["uml"] = package


def _die_with_parent() -> None:
    """End when the supervisor does, even while C code holds the interpreter's lock.

    In a PID namespace `unshare --kill-child` sees to that (UML_PARENT_PID is set): there our parent
    is the launcher. Source: prctl(2).
    """
    if "UML_PARENT_PID" in os.environ or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(0)


def _prefer_me_to_the_supervisor() -> None:
    """When memory runs out the kernel shall end a worker, not the supervisor."""
    try:
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("500")
    except OSError:
        pass  # not Linux, or not allowed: the default is no worse


def _backend(name: str) -> Any:
    """The class named by "module:Class" or "/file.py:Class"."""
    where, _, cls = name.rpartition(":")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location("uml_plugin_worker", where)
        if spec is None or spec.loader is None:
            raise ImportError(f"{where} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    return getattr(module, cls)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: workers/__main__.py module:Class")
    _die_with_parent()
    _prefer_me_to_the_supervisor()
    # Ctrl-C in the terminal is for the supervisor to deal with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mount()
    from uml.workers.channel import Channel
    from uml.workers.host import Host

    channel = Channel()
    Host(channel, lambda outbox, log: _backend(sys.argv[1])(outbox, log)).run()


if __name__ == "__main__":
    main()
