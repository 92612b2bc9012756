"""The virtual environment of each backend, under `UML_HOME/backends/<name>/`.

An environment counts when its `uml-env.json` is there and asks for what the spec asks for. It
is built beside its place, proved by a canary and then renamed into it, so a half-built one is
never used; what an interrupted installer left is removed by the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uml.protocol.errors import (
    BackendNotInstalled,
    InvalidModel,
    LoadFailed,
    NotFound,
    UmlError,
)
from uml.protocol.models import BackendSpec
from uml.supervisor import installer, wheels
from uml.supervisor.canary import run_canary
from uml.supervisor.formats import files, format_of, is_model
from uml.supervisor.installer import InstallError
from uml.supervisor.wheels import Progress

#: What the wire needs in every environment.
WIRE = ("msgpack>=1.0.8,<2",)
_STAMP = "uml-env.json"
#: Exact versions, in pip's own form: `pip install -r` makes the same environment elsewhere.
_LOCK = "requirements.lock"

_FREEZE = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.name: d.version for d in m.distributions()}))"
)


class InstallFailed(LoadFailed):
    """An environment could not be made; the message ends with the log's last lines."""

    code = "install_failed"


@dataclass(frozen=True)
class EnvironmentStatus:
    """installed: usable. versions: of every package in it. size_bytes: on disk.
    canary: "decoded" a token, "imported" the library. error: why it is not usable."""

    name: str
    installed: bool
    description: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    path: str = ""
    canary: str = ""
    error: str | None = None


class Environments:
    """Makes, proves, lists and removes environments. Blocking: not for the event loop."""

    def __init__(self, home: Path, cache: Path, specs: Mapping[str, BackendSpec]) -> None:
        self._root = home / "backends"
        self._models = (home / "models", cache / "downloads")
        self._cache = cache
        self._specs = specs

    def python(self, backend: str) -> str:
        """The interpreter a worker of this backend is started with.

        Raises: BackendNotInstalled with the command that installs it; NotFound.
        """
        spec = self._spec(backend)
        if not spec.requirements:
            return sys.executable
        error = self._fault(spec)
        if error:
            raise BackendNotInstalled(
                f"backend {backend} {error}: run `uml backends install {backend}`",
                detail={"backend": backend},
            )
        return str(installer.venv_python(self._path(backend)))

    def devices(self, backend: str) -> tuple[str, ...]:
        """Kinds of devices that a backend can use as it is installed: what is compiled here is
        compiled for some of those it knows. All of them while it is not installed."""
        spec = self._spec(backend)
        stamp = self._stamp(backend) if _builds(spec) else {}
        if not stamp:
            return spec.devices
        built = " ".join(stamp.get("cmake_args", ()))
        switches = {"cuda": "GGML_CUDA=ON", "rocm": "GGML_HIP=ON"}
        return tuple(d for d in spec.devices if switches.get(d, "") in built)

    def version(self, backend: str) -> str:
        """What is installed, in one text: it changes when a library or its build does."""
        spec, stamp = self._spec(backend), self._stamp(backend)
        versions = stamp.get("versions", {})
        of = [_canonical(_project(r)) for r in spec.requirements]
        said = [f"{name} {versions[name]}" for name in of if name in versions]
        return ", ".join([*(said or spec.requirements), *stamp.get("cmake_args", ())])

    def status(self) -> list[EnvironmentStatus]:
        """Every backend that users see; reads one small file for each."""
        return [self._status(spec) for spec in self._specs.values() if not spec.hidden]

    def install(
        self, backend: str, progress: Progress, force: bool = False, model: Path | None = None
    ) -> EnvironmentStatus:
        """Make the environment unless a good one is there (force: make it again).

        model: a file for the canary to decode a token with; the smallest at hand when not
        given. Raises: InstallFailed; NotFound for an unknown backend.
        """
        spec = self._spec(backend)
        if not spec.requirements:
            return self._status(spec)
        lock_file = self._root / f".{backend}.lock"
        with installer.lock(lock_file, lambda: progress("waiting for another installer", None)):
            if force or self._fault(spec):
                try:
                    self._make(spec, model, progress)
                except (InstallError, UmlError, OSError) as e:
                    raise InstallFailed(f"installing {backend}: {e}") from e
            return self._status(spec)

    def check_possible(self, backend: str) -> None:
        """Raises: InstallFailed when `install` is bound to fail, for a reason known beforehand."""
        spec = self._spec(backend)
        if spec.requirements and self._fault(spec):
            for requirement in _builds(spec):
                if not wheels.is_cached(self._cache, requirement) and not wheels.compiler():
                    raise InstallFailed(f"installing {backend}: {wheels.COMPILER_MISSING}")

    def check(self, backend: str, model: Path | None = None) -> EnvironmentStatus:
        """Load the library (and decode a token, where a model is at hand) in a canary."""
        spec = self._spec(backend)
        status = self._status(spec)
        if not status.installed:
            return status
        model = model or self._smallest_model(spec)
        try:
            run_canary(self.python(backend), spec, model)
        except UmlError as e:
            return dataclasses.replace(status, installed=False, error=e.message)
        return dataclasses.replace(status, canary="decoded" if model else "imported")

    def remove(self, backend: str) -> None:
        """Delete the environment; built wheels stay in the cache. Raises: BackendNotInstalled."""
        path = self._path(self._spec(backend).name)
        with installer.lock(self._root / f".{backend}.lock"):
            if not path.exists():
                raise BackendNotInstalled(f"backend {backend} is not installed")
            self._discard(path)

    # --- inside ----------------------------------------------------------------------------

    def _spec(self, backend: str) -> BackendSpec:
        spec = self._specs.get(backend)
        if spec is None:
            known = ", ".join(n for n, s in self._specs.items() if not s.hidden)
            raise NotFound(f"no backend {backend!r}; known are {known}")
        return spec

    def _path(self, backend: str) -> Path:
        return self._root / backend

    def _stamp(self, backend: str) -> dict[str, Any]:
        try:
            found = json.loads((self._path(backend) / _STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _fault(self, spec: BackendSpec) -> str | None:
        """Why the environment is not usable, to follow "backend X"; None when it is."""
        stamp = self._stamp(spec.name)
        if not stamp:
            return "is not installed"
        if stamp.get("requirements") != [*WIRE, *spec.requirements]:
            return f"is out of date, {', '.join(spec.requirements)} is wanted"
        if not os.access(installer.venv_python(self._path(spec.name)), os.X_OK):
            return "has lost its Python"
        return None

    def _status(self, spec: BackendSpec) -> EnvironmentStatus:
        if not spec.requirements:
            return EnvironmentStatus(spec.name, True, spec.description, path=sys.prefix)
        error, stamp = self._fault(spec), self._stamp(spec.name)
        return EnvironmentStatus(
            spec.name,
            error is None,
            spec.description,
            versions=stamp.get("versions", {}),
            size_bytes=stamp.get("size_bytes", 0),
            path=str(self._path(spec.name)) if stamp else "",
            canary=stamp.get("canary", ""),
            error=error,
        )

    def _make(self, spec: BackendSpec, model: Path | None, progress: Progress) -> None:
        """Build beside, prove, rename. The lock is held."""
        for stale in self._root.glob(f".{spec.name}.new-*"):
            shutil.rmtree(stale, ignore_errors=True)
        half = self._root / f".{spec.name}.new-{os.getpid()}"
        log_path = self._root / f".{spec.name}.log"
        try:
            with log_path.open("w", encoding="utf-8") as file:
                stamp = self._fill(half, spec, model, progress, lambda s: print(s, file=file))
            (half / _STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")
            if self._path(spec.name).exists():
                self._discard(self._path(spec.name))
            half.rename(self._path(spec.name))
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _fill(
        self,
        venv: Path,
        spec: BackendSpec,
        model: Path | None,
        progress: Progress,
        log: installer.Sink,
    ) -> dict[str, Any]:
        """Everything inside the new environment; what its stamp will say."""
        progress("making the environment", None)
        wanted: list[str] = []
        builds = _builds(spec)
        installer.create_venv(venv, log, pip=bool(builds))
        for requirement in spec.requirements:
            if requirement in builds:
                wheel = wheels.build_wheel(self._cache, requirement, venv, progress)
                wanted.append(str(wheel))
            else:
                wanted.append(requirement)
        progress("installing packages", None)
        installer.install(venv, [*WIRE, *wanted], log)
        model = model or self._smallest_model(spec)
        progress("decoding one token" if model else "loading the library", None)
        python = str(installer.venv_python(venv))
        run_canary(python, spec, model)
        versions = _freeze(python)
        lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
        (venv / _LOCK).write_text("".join(lines), encoding="utf-8")
        return {
            "backend": spec.name,
            "requirements": [*WIRE, *spec.requirements],
            "versions": versions,
            "cmake_args": list(wheels.machine_args()) if builds else [],
            "canary": "decoded" if model else "imported",
            "size_bytes": _size(venv),
            "made_at": int(time.time()),
        }

    def _discard(self, path: Path) -> None:
        """Gone from its name at once, deleted after."""
        aside = self._root / f".{path.name}.new-old-{os.getpid()}"
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _smallest_model(self, spec: BackendSpec) -> Path | None:
        there = [p for d in self._models if d.is_dir() for p in d.iterdir() if p.is_file()]
        names = {p.name for p in there}
        found = [
            p
            for p in there
            if is_model(p.name, names) and format_of(p.name) in spec.formats and _is_whole(p)
        ]
        return min(found, key=lambda p: p.stat().st_size, default=None)


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(InvalidModel):
        return bool(files(str(path)))
    return False


def _builds(spec: BackendSpec) -> list[str]:
    """The requirements that have to be compiled."""
    names = {_canonical(name) for name in spec.source_build}
    return [r for r in spec.requirements if _project(r) in names]


def _project(requirement: str) -> str:
    return _canonical(re.split(r"[\s\[=<>!~;@]", requirement.strip(), maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _freeze(python: str) -> dict[str, str]:
    """Every package of an environment and its version."""
    command = [python, "-I", "-c", _FREEZE]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    except subprocess.CalledProcessError as e:
        raise InstallError(f"cannot list the packages: {e.stderr[-500:]}") from e
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _size(folder: Path) -> int:
    """Bytes of the files inside; links are not followed."""
    return sum(
        entry.lstat().st_size
        for root, _, names in os.walk(folder)
        for entry in (Path(root, name) for name in names)
    )
