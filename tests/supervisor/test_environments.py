"""Environments made without a network: a real venv that borrows this one's packages, and the
real fake backend as its canary."""

from __future__ import annotations

import os
import sysconfig
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from uml.plugins.builtin import FAKE, LLAMA_CPP
from uml.protocol.errors import BackendNotInstalled, LoadFailed, NotFound
from uml.supervisor import environments as module
from uml.supervisor import installer, wheels
from uml.supervisor.environments import Environments, InstallFailed
from uml.supervisor.installer import InstallError

SPEC = replace(FAKE, name="borrowed", requirements=("nothing==1",), hidden=False)


def silent(stage: str, fraction: float | None) -> None: ...


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been installed, each time."""
    installed: list[list[str]] = []

    def create(path: Path, log: installer.Sink, *, pip: bool = False) -> None:
        venv.create(path, symlinks=True, with_pip=False)

    def install(path: Path, requirements: list[str], log: installer.Sink) -> None:
        installed.append(list(requirements))
        log("installing")
        (site,) = path.glob("lib/python3*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])

    monkeypatch.setattr(installer, "create_venv", create)
    monkeypatch.setattr(installer, "install", install)
    return installed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Replaces the canary by a note of what it was asked to load."""
    asked: list[Path | None] = []
    monkeypatch.setattr(module, "run_canary", lambda _python, _spec, model: asked.append(model))
    return asked


def make(tmp_path: Path, spec=SPEC) -> Environments:
    return Environments(tmp_path / "home", tmp_path / "cache", {spec.name: spec, "fake": FAKE})


def leftovers(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "home" / "backends").glob(".*.new-*")]


def test_install_is_proved_by_a_real_worker(tmp_path: Path, offline: list[list[str]]) -> None:
    environments = make(tmp_path)
    stages: list[str] = []
    status = environments.install("borrowed", lambda stage, _: stages.append(stage))
    assert status.installed and status.canary == "imported" and status.size_bytes > 0
    assert "msgpack" in status.versions
    lock = Path(status.path, "requirements.lock").read_text().splitlines()
    assert f"msgpack=={status.versions['msgpack']}" in lock
    assert offline == [["msgpack>=1.0.8,<2", "nothing==1"]]
    assert environments.python("borrowed") == f"{status.path}/bin/python"
    assert "loading the library" in stages and not leftovers(tmp_path)
    assert environments.check("borrowed").installed


def test_install_again_does_nothing_unless_forced(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    environments = make(tmp_path)
    environments.install("borrowed", silent)
    environments.install("borrowed", silent)
    assert len(offline) == 1
    environments.install("borrowed", silent, force=True)
    assert len(offline) == 2 and not leftovers(tmp_path)
    assert environments.python("borrowed")


def test_environment_of_older_requirements_is_out_of_date(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    make(tmp_path).install("borrowed", silent)
    newer = make(tmp_path, replace(SPEC, requirements=("nothing==2",)))
    with pytest.raises(BackendNotInstalled, match="nothing==2"):
        newer.python("borrowed")
    assert newer.install("borrowed", silent).installed and newer.python("borrowed")


def test_canary_that_fails_leaves_the_old_environment(
    tmp_path: Path,
    offline: list[list[str]],
    quick: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environments = make(tmp_path)
    environments.install("borrowed", silent)

    def fail(*_: object) -> None:
        raise LoadFailed("died of SIGILL")

    monkeypatch.setattr(module, "run_canary", fail)
    with pytest.raises(InstallFailed, match="SIGILL"):
        environments.install("borrowed", silent, force=True)
    assert environments.python("borrowed") and not leftovers(tmp_path)
    status = environments.check("borrowed")
    assert not status.installed and status.error == "died of SIGILL"


def test_first_install_that_fails_leaves_nothing(
    tmp_path: Path, offline: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InstallError("pip ended with 1:\nno matching distribution")

    monkeypatch.setattr(installer, "install", fail)
    environments = make(tmp_path)
    with pytest.raises(InstallFailed, match="no matching distribution"):
        environments.install("borrowed", silent)
    assert not leftovers(tmp_path) and not environments.status()[0].installed


def test_half_built_leftovers_go_with_the_next_install(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    stale = tmp_path / "home" / "backends" / ".borrowed.new-1"
    stale.mkdir(parents=True)
    make(tmp_path).install("borrowed", silent)
    assert not stale.exists()


def test_canary_takes_the_smallest_model_at_hand(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (models / "big.fake.json").write_bytes(b"x" * 100)
    (models / "small.fake.json").write_bytes(b"x")
    (models / "other.gguf").write_bytes(b"")
    environments = make(tmp_path)
    assert environments.install("borrowed", silent).canary == "decoded"
    environments.check("borrowed", models / "big.fake.json")
    assert quick == [models / f"{name}.fake.json" for name in ("small", "big")]


def test_missing_backend_names_the_command_and_unknown_the_known(tmp_path: Path) -> None:
    environments = make(tmp_path)
    with pytest.raises(BackendNotInstalled, match="uml backends install borrowed"):
        environments.python("borrowed")
    with pytest.raises(NotFound, match="borrowed"):
        environments.python("other")
    with pytest.raises(BackendNotInstalled):
        environments.remove("borrowed")


def test_remove_takes_the_folder(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    environments = make(tmp_path)
    status = environments.install("borrowed", silent)
    environments.remove("borrowed")
    assert not Path(status.path).exists() and not leftovers(tmp_path)


def test_backend_without_requirements_runs_here(tmp_path: Path) -> None:
    import sys

    environments = make(tmp_path)
    assert environments.python("fake") == sys.executable
    assert [s.name for s in environments.status()] == ["borrowed"]
    assert environments.install("fake", silent).installed


def test_damaged_stamp_counts_as_not_installed(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    environments = make(tmp_path)
    status = environments.install("borrowed", silent)
    for damage in ("", "[]", "{"):
        Path(status.path, "uml-env.json").write_text(damage)
        assert not environments.status()[0].installed


def test_environment_that_lost_its_python_says_so(
    tmp_path: Path, offline: list[list[str]], quick: list[Path | None]
) -> None:
    environments = make(tmp_path)
    status = environments.install("borrowed", silent)
    os.unlink(Path(status.path, "bin", "python"))
    with pytest.raises(BackendNotInstalled, match="lost its Python"):
        environments.python("borrowed")


def test_compiled_requirement_is_installed_from_its_wheel(
    tmp_path: Path,
    offline: list[list[str]],
    quick: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel = tmp_path / "llama.whl"
    monkeypatch.setattr(wheels, "build_wheel", lambda _cache, requirement, *_: wheel)
    environments = make(tmp_path, LLAMA_CPP)
    environments.install("llama_cpp", silent)
    assert offline == [["msgpack>=1.0.8,<2", str(wheel), *LLAMA_CPP.requirements[1:]]]


def test_missing_compiler_is_known_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "compiler", lambda: None)
    environments = make(tmp_path, LLAMA_CPP)
    with pytest.raises(InstallFailed, match=r"apt install g\+\+"):
        environments.check_possible("llama_cpp")
    assert not (tmp_path / "home").exists()
