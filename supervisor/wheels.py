"""Wheels that have to be compiled: built once per version, flags and platform, then kept.

A finished wheel lies in `<cache>/wheels/<package>-<key>/` beside `build.log`; a folder appears
by rename only when its wheel is complete.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from uml.supervisor import installer
from uml.supervisor.build_flags import cmake_args, read_cpu_flags
from uml.supervisor.installer import InstallError

#: (stage, fraction or None)
Progress = Callable[[str, float | None], None]

#: A step of Ninja "[12/340]" or of Make "[ 12%]".
_NINJA = re.compile(r"\s*\[(\d+)/(\d+)\]")
_MAKE = re.compile(r"\s*\[\s*(\d+)%\]")

COMPILER_MISSING = "a C++ compiler is needed once to build llama.cpp: apt install g++"


def build_fraction(line: str) -> float | None:
    """How far a compile is, from a line it printed; None when the line does not say."""
    if found := _NINJA.match(line):
        done, total = int(found[1]), int(found[2])
        return min(1.0, done / total) if total else None
    if found := _MAKE.match(line):
        return min(1.0, int(found[1]) / 100)
    return None


def compiler() -> str | None:
    """Path of the C++ compiler that CMake would take."""
    return next(filter(None, map(shutil.which, _compilers())), None)


def _compilers() -> list[str]:
    return [*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"]


def cuda_at_hand() -> bool:
    """Whether both a CUDA compiler and an NVIDIA driver are here."""
    return shutil.which("nvcc") is not None and Path("/proc/driver/nvidia/version").exists()


def machine_args() -> tuple[str, ...]:
    """`cmake_args` for the machine we are on."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    return cmake_args(read_cpu_flags(cpuinfo), platform.machine(), cuda=cuda_at_hand())


def wheel_folder(cache: Path, requirement: str, args: Sequence[str]) -> Path:
    """Where the wheel of this requirement, for these flags and this platform, is kept."""
    libc = "-".join(platform.libc_ver())
    tag = f"{platform.python_implementation()}{sysconfig.get_python_version()}"
    key = "\n".join([requirement, *args, sysconfig.get_platform(), libc, tag])
    name = re.sub(r"[^A-Za-z0-9.]+", "-", requirement).strip("-")
    return cache / "wheels" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def is_cached(cache: Path, requirement: str) -> bool:
    """Whether `build_wheel` would have nothing to build."""
    return cached_wheel(wheel_folder(cache, requirement, machine_args())) is not None


def cached_wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def build_wheel(cache: Path, requirement: str, venv: Path, progress: Progress) -> Path:
    """The wheel of a source-only requirement: from the cache, or compiled now (minutes).

    venv: an environment with pip, which does the building. Two builders of the same wheel wait
    for each other. Raises: InstallError, with the end of the build's log.
    """
    args = machine_args()
    folder = wheel_folder(cache, requirement, args)
    if wheel := cached_wheel(folder):
        return wheel

    def waiting() -> None:
        progress(f"waiting for another build of {requirement}", None)

    with installer.lock(folder.with_name(folder.name + ".lock"), waiting):
        if wheel := cached_wheel(folder):
            return wheel
        if compiler() is None:
            raise InstallError(COMPILER_MISSING)
        return _build(folder, requirement, args, venv, progress)


def _cores() -> int:
    """Cores this process may use; a container often allows fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _build(
    folder: Path, requirement: str, args: Sequence[str], venv: Path, progress: Progress
) -> Path:
    half = folder.with_name(folder.name + ".new")  # the lock is ours: a leftover is stale
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    stage = f"compiling {requirement}, once"
    progress(stage, None)
    environ = os.environ | {
        "CMAKE_ARGS": " ".join(args),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(_cores()),
    }
    # pip keeps built wheels by version alone, whatever the flags: not here. Verbose, because
    # that is what lets the compiler's own progress through.
    command = [*installer.pip_command(venv), "wheel", "--verbose", "--no-deps", "--no-cache-dir"]
    command += ["--wheel-dir", str(half), requirement]
    with (half / "build.log").open("w", encoding="utf-8") as log:

        def line(text: str) -> None:
            log.write(text + "\n")
            fraction = build_fraction(text)
            if fraction is not None:
                progress(stage, fraction)

        try:
            installer.run(command, line, environ)
        except InstallError as e:
            kept = folder.with_name(folder.name + ".failed.log")
            shutil.copyfile(half / "build.log", kept)
            raise InstallError(f"{e}\nthe whole log: {kept}") from None
    if cached_wheel(half) is None:
        raise InstallError(f"building {requirement} gave no wheel")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    wheel = cached_wheel(folder)
    assert wheel is not None
    return wheel
