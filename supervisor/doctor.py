"""Is this machine fit? One check per line, each with the fix for what it finds.

Checks look, they change nothing; a fault in one never stops the others.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from uml.plugins.loader import load_plugins
from uml.supervisor import build_flags, installer, machine, optimize, tree, wheels
from uml.supervisor.bootstrap import STARTER_BACKEND
from uml.supervisor.budget import DeviceMemory
from uml.supervisor.config import Config, cache_dir
from uml.supervisor.environments import Environments, InstallFailed
from uml.supervisor.units import format_size

Level = Literal["ok", "warn", "fail"]
GiB = 1 << 30
#: Bytes a first set-up needs: sources and objects of llama.cpp, two environments, one model.
SETUP_BYTES = 3 * GiB


@dataclass(frozen=True)
class Check:
    """name: what was looked at. what: what was found. fix: what to do about it, or empty."""

    name: str
    level: Level
    what: str
    fix: str = ""


def doctor(config: Config) -> list[Check]:
    """Everything worth knowing before a start; takes about a second."""
    looks: Sequence[Callable[[Config], list[Check]]] = (
        _config_file,
        _python,
        _compiler,
        _processor,
        _disk,
        _memory,
        _nvidia,
        _port,
        _backends,
        _folders,
        _process_tree,
    )
    found: list[Check] = []
    for look in looks:
        try:
            found += look(config)
        except Exception as e:  # a broken /proc must not hide the other findings
            name = look.__name__.strip("_").replace("_", " ")
            found.append(Check(name, "warn", f"could not be looked at: {type(e).__name__}: {e}"))
    return found


def exit_code(checks: Sequence[Check]) -> int:
    """1 when something has to be put right first, else 0."""
    return 1 if any(check.level == "fail" for check in checks) else 0


def _config_file(config: Config) -> list[Check]:
    what = str(config.path) if config.path else "none, defaults are used"
    return [Check("configuration", "ok", what)]


def _python(_: Config) -> list[Check]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    checks = [Check("python", "ok" if good else "fail", version, "" if good else "use >= 3.11")]
    if uv := shutil.which("uv"):
        checks.append(Check("environments by", "ok", f"uv, {uv}"))
    elif installer.has_venv():
        checks.append(Check("environments by", "ok", "venv and pip"))
    else:
        what = "neither venv with pip nor uv"
        checks.append(Check("environments by", "fail", what, "apt install python3-venv"))
    return checks


def _compiler(config: Config) -> list[Check]:
    """Needed only for what still has to be built."""
    specs = load_plugins(config.home).specs
    environments = Environments(config.home, cache_dir(), specs)
    for backend in specs:
        try:
            environments.check_possible(backend)
        except InstallFailed as e:
            return [Check("compiler", "fail", e.message, "apt install g++")]
    path, cmake = wheels.compiler(), shutil.which("cmake")
    by = f"cmake {cmake}" if cmake else "cmake comes with pip when it is needed"
    what = f"{path}; {by}" if path else "none, and nothing is left to build"
    return [Check("compiler", "ok", what)]


def _processor(config: Config) -> list[Check]:
    args = wheels.machine_args()
    sets = build_flags.instruction_sets(args)
    what = f"{machine.cores()} cores; built for {', '.join(sets) or 'the baseline'}"
    cpuinfo = Path("/proc/cpuinfo")
    flags = build_flags.read_cpu_flags(cpuinfo.read_text()) if cpuinfo.exists() else frozenset()
    if any(flag.startswith("amx") for flag in flags):
        what += "; AMX is advertised and left out, it dies with SIGILL on many such machines"
    checks = [Check("processor", "ok", what)]
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        if name in os.environ:
            what = f"{name}={os.environ[name]} is set here; workers do not inherit it"
            checks.append(Check("openmp", "ok", what))
    spec = load_plugins(config.home).specs.get("llama_cpp")
    spin = spec.environ.get("GOMP_SPINCOUNT") if spec else None
    if spin:
        checks.append(
            Check(
                "openmp",
                "ok",
                f"idle threads of llama.cpp spin {spin} times before they sleep, 100 times while "
                "others want the cores",
            )
        )
    return checks


def _disk(config: Config) -> list[Check]:
    checks = []
    for name, path in (("home", config.home), ("cache", cache_dir())):
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free
        what = f"{path}, {format_size(free)} free"
        if not os.access(there, os.W_OK):
            checks.append(
                Check(name, "fail", f"{path} cannot be written to", f"set UML_{name.upper()}")
            )
        elif free < SETUP_BYTES:
            checks.append(
                Check(name, "warn", what, f"a first set-up needs {format_size(SETUP_BYTES)}")
            )
        else:
            checks.append(Check(name, "ok", what))
    return checks


def _memory(config: Config) -> list[Check]:
    groups = machine.memory_cgroups()
    ram = machine.ram(groups)
    what = f"{format_size(ram.free_bytes)} free of {format_size(ram.total_bytes)}"
    if limit := machine.cgroup_memory(groups):
        what += f"; a cgroup limits it to {format_size(limit[0])}"
    if cap := config.budget.get("ram"):
        what += f"; budget {format_size(cap)}"
    found, there = optimize.profile(_devices())
    context = found.n_ctx if there != "ram" else optimize.PROFILES[0].n_ctx
    size = Check(
        "profile",
        "ok",
        f"{found.name} of {there}: context {context} where nothing is said; "
        f"to begin with: uml pull {found.starter}",
    )
    if ram.free_bytes < GiB:
        return [Check("memory", "warn", what, "small models only; free some RAM"), size]
    return [Check("memory", "ok", what), size]


def _devices() -> list[DeviceMemory]:
    seen = machine.Machine()
    try:
        return seen.snapshot()
    finally:
        seen.close()


def _nvidia(_: Config) -> list[Check]:
    nvidia = machine.Nvidia.open()
    try:
        cards = [
            f"{d.name} {d.detail} {format_size(d.free_bytes)} free of {format_size(d.total_bytes)}"
            for d in nvidia.memory()
        ]
    finally:
        nvidia.close()
    if cards:
        checks = [Check("gpu", "ok", f"driver {nvidia.driver}; {'; '.join(cards)}")]
        if not wheels.cuda_at_hand():
            what = "no nvcc: llama.cpp is built for the CPU alone"
            checks.append(
                Check(
                    "cuda",
                    "warn",
                    what,
                    "install the CUDA toolkit, then `uml backends install llama_cpp --force`",
                )
            )
        return checks
    if Path("/proc/driver/nvidia/version").exists():
        return [Check("gpu", "warn", f"driver present, NVML says: {nvidia.error}", "nvidia-smi")]
    return [Check("gpu", "ok", "none; models run on the CPU")]


def _port(config: Config) -> list[Check]:
    name, where = "port", f"{config.host}:{config.port}"
    if config.port == 0 or _can_bind(config.host, config.port):
        return [Check(name, "ok", f"{where} is free")]
    if _is_ours(config.host, config.port):
        return [Check(name, "ok", f"{where} is taken by a running uml")]
    holder = port_holder(config.port)
    return [Check(name, "fail", f"{where} is taken by {holder}", "end it, or set UML_PORT")]


def _can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def _is_ours(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=2)
    try:
        connection.request("GET", "/health")
        body = json.loads(connection.getresponse().read(65536))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(body, dict) and body.get("service") == "uml"


def port_holder(port: int) -> str:
    """Who listens on a port, as far as we may see it."""
    try:
        for found in psutil.net_connections("tcp"):
            if found.laddr and found.laddr.port == port and found.status == psutil.CONN_LISTEN:
                if found.pid is None:
                    break
                return f"{psutil.Process(found.pid).name()} (pid {found.pid})"
    except psutil.Error:
        pass
    return "a process that we may not look at"


def _backends(config: Config) -> list[Check]:
    loaded = load_plugins(config.home)
    checks = [
        Check(f"plugin {p.name}", "warn", f"{p.origin}: {p.error}", "fix it or remove it")
        for p in loaded.plugins
        if p.error
    ]
    for status in Environments(config.home, cache_dir(), loaded.specs).status():
        name = f"backend {status.name}"
        if status.installed:
            proof = f", canary {status.canary}" if status.canary else ""
            what = f"{status.path}, {format_size(status.size_bytes)}{proof}"
            checks.append(Check(name, "ok", what))
            continue
        fix = f"uml backends install {status.name}"
        if status.path or status.name == STARTER_BACKEND:
            checks.append(Check(name, "warn", status.error or "is not installed", fix))
        else:
            checks.append(Check(name, "ok", f"not installed ({status.description}): {fix}"))
    return checks


def _folders(config: Config) -> list[Check]:
    checks = []
    for folder in (config.home / "models", *config.model_dirs):
        if folder.is_dir():
            count = sum(1 for p in folder.iterdir() if not p.name.startswith("."))
            checks.append(Check("models", "ok", f"{folder}, {count} entries"))
        elif folder in config.model_dirs:
            checks.append(Check("models", "warn", f"{folder} does not exist", "change model_dirs"))
        else:
            checks.append(
                Check("models", "ok", f"{folder}, nothing there yet: uml pull starter/chat")
            )
    return checks


def _process_tree(_: Config) -> list[Check]:
    """Whether a `kill -9` of the supervisor takes every descendant of its workers along."""
    if not sys.platform.startswith("linux"):
        what = "not Linux: children of a worker may outlive a supervisor that is killed"
        return [Check("pid namespaces", "warn", what, "the next start ends what is left")]
    if tree.namespace_prefix():
        return [Check("pid namespaces", "ok", "a worker's whole tree dies with the supervisor")]
    what = (
        "refused by this kernel or container: when the supervisor is killed with SIGKILL, a child "
        "that left its worker's session lives on until the next start ends it"
    )
    return [Check("pid namespaces", "warn", what, _namespace_fix())]


def _namespace_fix() -> str:
    if not shutil.which("setpriv") or not shutil.which("unshare"):
        return "apt install util-linux"
    knob = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if knob.exists() and knob.read_text().strip() == "0":
        return "sysctl kernel.unprivileged_userns_clone=1"
    return "allow user namespaces, or accept it"
