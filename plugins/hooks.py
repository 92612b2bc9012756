"""The door: a plugin is a module with `register(registry)`, built-ins included.

    from uml.protocol.models import BackendSpec

    def register(registry):
        registry.backend(BackendSpec(name="mine", worker=f"{HERE}/worker.py:Mine", ...))

A plugin has two files: `spec.py`, read by the supervisor, and `worker.py`, named by its path,
since the backend's own environment cannot import what is installed beside the supervisor.
"""

from __future__ import annotations

import re
from pathlib import Path

from uml.protocol.models import BackendSpec

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_WORKER = re.compile(r"(?P<where>.+):(?P<name>[A-Za-z_]\w*)")


class Registry:
    """Collects what plugins bring. Specs are checked here, once, for everybody."""

    def __init__(self) -> None:
        self.specs: dict[str, BackendSpec] = {}

    def backend(self, spec: BackendSpec) -> None:
        """Add a backend. Raises: ValueError when the spec is unusable or the name is taken."""
        if not _NAME.fullmatch(spec.name):
            raise ValueError(f"backend name {spec.name!r} is not of the form {_NAME.pattern}")
        if spec.name in self.specs:
            raise ValueError(f"backend {spec.name!r} is already registered")
        found = _WORKER.fullmatch(spec.worker)
        if found is None:
            raise ValueError(f"{spec.name}: worker {spec.worker!r} is not of the form module:Class")
        where = found["where"]
        if not where.startswith("uml.workers.") and not Path(where).is_file():
            raise ValueError(f"{spec.name}: worker file {where!r} does not exist")
        if not spec.formats or not spec.tasks:
            raise ValueError(f"{spec.name}: a backend needs at least one format and one task")
        self.specs[spec.name] = spec
