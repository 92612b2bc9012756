from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from uml.plugins import builtin, loader
from uml.plugins.hooks import Registry
from uml.protocol.models import BackendSpec

SPEC = """
from pathlib import Path
from uml.protocol.models import BackendSpec

def register(registry):
    registry.backend(BackendSpec(
        name="mine", worker=f"{Path(__file__).parent / 'worker.py'}:Mine",
        formats=("x",), tasks=("chat",)))
"""


def plugin(home: Path, name: str, spec: str) -> None:
    folder = home / "plugins" / name
    folder.mkdir(parents=True)
    (folder / "spec.py").write_text(spec)
    (folder / "worker.py").write_text("class Mine: ...")


def test_builtins_come_through_the_door(tmp_path: Path) -> None:
    specs = loader.load_specs(tmp_path)
    assert specs["llama_cpp"].formats == ("gguf",)
    assert specs["fake"].hidden and not specs["fake"].requirements


def test_builtin_workers_exist() -> None:
    root = Path(builtin.__file__).parent.parent
    for spec in loader.load_specs().values():
        module = spec.worker.split(":")[0].removeprefix("uml.").replace(".", "/")
        assert (root / f"{module}.py").exists() or (root / module / "__init__.py").exists()


def test_folder_plugin_is_found(tmp_path: Path) -> None:
    plugin(tmp_path, "mine", SPEC)
    found = loader.load_plugins(tmp_path)
    assert found.specs["mine"].worker.endswith("worker.py:Mine")
    assert found.plugins[-1].backends == ("mine",) and found.plugins[-1].error is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("def register(registry): 1/0", "ZeroDivisionError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("x = (", "SyntaxError"),
        ("pass", "not callable"),
        (SPEC.replace('"mine"', '"llama_cpp"'), "already registered"),
        (SPEC.replace("worker.py'", "gone.py'"), "does not exist"),
    ],
)
def test_broken_plugin_is_named_and_stops_nobody(tmp_path: Path, spec: str, reason: str) -> None:
    plugin(tmp_path, "a_broken", spec)
    plugin(tmp_path, "z_good", SPEC.replace('"mine"', '"good"'))
    found = loader.load_plugins(tmp_path)
    assert "good" in found.specs and "llama_cpp" in found.specs
    (broken,) = [p for p in found.plugins if p.error]
    assert broken.name == "a_broken" and reason in str(broken.error)


def test_plugin_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    plugin(tmp_path, "half", SPEC + "    raise RuntimeError('late')\n")
    assert "mine" not in loader.load_specs(tmp_path)


def test_installed_plugin_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uml_test_plugin.py").write_text(
        SPEC.replace("worker.py", "uml_test_plugin.py").replace('"mine"', '"installed"')
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = importlib.metadata.EntryPoint("installed", "uml_test_plugin", loader.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    assert "installed" in loader.load_specs()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Bad Name"},
        {"name": "../up"},
        {"worker": "no_class"},
        {"worker": "os:system"},
        {"formats": ()},
        {"tasks": ()},
    ],
)
def test_registry_refuses_an_unusable_spec(wrong: dict[str, object]) -> None:
    good = {
        "name": "x",
        "worker": "uml.workers.backends.fake:Fake",
        "formats": ("x",),
        "tasks": ("chat",),
    }
    Registry().backend(BackendSpec(**good))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Registry().backend(BackendSpec(**(good | wrong)))  # type: ignore[arg-type]
