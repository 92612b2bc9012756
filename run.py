#!/usr/bin/env python3
"""`uml` from a checkout: mounts the folders as the package `uml`, sees to its own dependencies
(a virtual environment of its own, made once) and hands over to the command line."""

import sys

if sys.version_info < (3, 11):
    sys.exit("uml needs Python 3.11 or later, this is " + sys.version.split()[0])

import types
from pathlib import Path


def mount() -> None:
    """Make `import uml...` mean the folders beside this file, whatever else is installed."""
    package = types.ModuleType("uml")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["uml"] = package


def main() -> int:
    mount()
    from uml.supervisor import bootstrap

    return bootstrap.start(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
