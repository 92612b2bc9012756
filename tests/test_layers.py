"""The walls between the rooms, kept by reading the source."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("protocol", "workers", "plugins", "supervisor")
#: Room -> rooms it may import besides itself.
MAY_IMPORT = {
    "protocol": set(),
    "workers": {"protocol"},
    "plugins": {"protocol"},
    "supervisor": {"protocol", "plugins"},
}
#: Libraries that live in a backend's own environment.
BACKEND_LIBRARIES = {
    *("llama_cpp", "vllm", "torch", "transformers", "numpy", "pywhispercpp", "piper"),
    *("exllamav2", "exllamav3", "gguf", "jinja2", "_pywhispercpp", "onnxruntime", "av"),
}
#: What the supervisor has and a backend's environment does not.
SUPERVISOR_LIBRARIES = {"aiohttp", "psutil", "rich", "pynvml", "openai", "huggingface_hub"}


def sources(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file; relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way_only(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imports(path)
        if name.startswith("uml.") and name.split(".")[1] not in {room, *MAY_IMPORT[room]}
    ]
    assert not wrong


@pytest.mark.parametrize("room", [*ROOMS, "tests", "."])
def test_imports_are_absolute_and_never_bare_room_names(room: str) -> None:
    paths = [ROOT / "run.py"] if room == "." else sources(room)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if name.startswith(".") or name.split(".")[0] in ROOMS
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["protocol", "workers"])
def test_rooms_for_foreign_environments_parse_with_python_3_10(room: str) -> None:
    for path in sources(room):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_backend_libraries_are_imported_by_workers_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room in ("protocol", "plugins", "supervisor")
        for path in sources(room)
        for name in imports(path)
        if name.split(".")[0] in BACKEND_LIBRARIES
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["protocol", "workers", "plugins"])
def test_supervisor_libraries_stay_with_the_supervisor(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imports(path)
        if name.split(".")[0] in SUPERVISOR_LIBRARIES
    ]
    assert not wrong


def test_package_list_names_every_folder_with_code() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {
        "uml." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in sources(room)
    }
    assert set(listed) == folders
    assert len(listed) == len(set(listed))


def test_package_dirs_are_the_rooms() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    pairs = (line.split("=") for line in setup["options"]["package_dir"].strip().splitlines())
    assert {k.strip(): v.strip() for k, v in pairs} == {f"uml.{r}": r for r in ROOMS}


@pytest.mark.parametrize("folder", ["", *ROOMS])
def test_rooms_hold_no_second_uml(folder: str) -> None:
    """A folder `uml` or a top-level __init__.py would shadow the mounted namespace."""
    assert not (ROOT / folder / "uml").exists()
    assert not (ROOT / "__init__.py").exists()


def test_cli_help_imports_no_heavy_library() -> None:
    program = (
        "import sys, types; uml = types.ModuleType('uml'); uml.__path__ = [sys.argv[1]];"
        "sys.modules['uml'] = uml\n"
        "from uml.supervisor.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [n for n in ('aiohttp', 'huggingface_hub', 'pynvml') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY []")
