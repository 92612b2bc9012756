"""Models are found where they are, keep their names, and broken ones say why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import LLAMA, write
from uml.plugins.loader import load_specs
from uml.protocol.errors import Conflict, InvalidModel, ModelNotFound
from uml.supervisor.config import load_config
from uml.supervisor.registry import Registry

Open = Callable[..., Registry]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[Registry] = []

    def go(toml: str = "", **settings: object) -> Registry:
        file = tmp_path / "uml.toml"
        file.write_text(toml)
        overrides = {"home": str(tmp_path / "home"), **settings}
        config = load_config(file, env={}, overrides=overrides)
        env = {"HOME": str(tmp_path / "user")}
        made.append(Registry(tmp_path / "home/registry.sqlite", config, load_specs(), env))
        return made[-1]

    yield go
    for registry in made:
        registry.close()


def ids(registry: Registry) -> list[str]:
    return [m.id for m in registry.models()]


def test_file_dropped_in_appears_and_goes_without_a_restart(opened: Open, tmp_path: Path) -> None:
    registry = opened()
    assert ids(registry) == []
    path = write(tmp_path / "home/models/deep/er/Tiny.Q4_0.gguf")
    assert ids(registry) == ["tiny"]
    model = registry.find("TINY")
    assert model.backend == "llama_cpp" and model.facts and model.facts.arch == "llama"
    assert registry.find("tiny.q4_0.gguf").id == "tiny", "the file's name works too"
    path.unlink()
    assert ids(registry) == []


def test_broken_file_is_listed_with_its_reason_and_hurts_nobody(
    opened: Open, tmp_path: Path
) -> None:
    write(tmp_path / "home/models/good.gguf")
    (tmp_path / "home/models/bad.gguf").write_bytes(b"not a model")
    registry = opened()
    assert ids(registry) == ["bad", "good"]
    with pytest.raises(InvalidModel, match="not a GGUF file"):
        registry.find("bad")
    assert registry.find("good").error is None


def test_file_that_is_completed_later_is_read_again(opened: Open, tmp_path: Path) -> None:
    path = write(tmp_path / "home/models/m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    registry = opened()
    with pytest.raises(InvalidModel, match="truncated"):
        registry.find("m")
    path.write_bytes(whole)
    assert registry.find("m").error is None


def test_id_stays_when_another_file_appears(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/m.Q8_0.gguf")
    assert ids(opened()) == ["m"]
    write(tmp_path / "home/models/m.Q4_0.gguf")
    registry = opened()
    assert ids(registry) == ["m", "m-q4-0"]
    assert registry.find("m").file.path.endswith("m.Q8_0.gguf")


def test_sharded_model_is_one_and_names_a_missing_part(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "home/models"
    write(folder / "m-00001-of-00002.gguf")
    registry = opened()
    with pytest.raises(InvalidModel, match="part 2 of 2 is missing"):
        registry.find("m")
    write(folder / "m-00002-of-00002.gguf", tensors={"b": ((64,), 0, 256)})
    assert len(registry.find("m").file.paths) == 2 and ids(registry) == ["m"]


def test_unknown_name_tells_the_nearest(opened: Open, tmp_path: Path) -> None:
    registry = opened()
    with pytest.raises(ModelNotFound, match="uml pull starter/chat"):
        registry.find("x")
    write(tmp_path / "home/models/smollm2-135m.gguf")
    with pytest.raises(ModelNotFound, match="did you mean smollm2-135m"):
        registry.find("smolm2")


def test_other_programs_stores_are_found_once_each(opened: Open, tmp_path: Path) -> None:
    user = tmp_path / "user"
    blob = write(user / ".cache/huggingface/hub/models--o--r/blobs/abc")
    for revision in ("r1", "r2"):
        link = user / f".cache/huggingface/hub/models--o--r/snapshots/{revision}/hub-model.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    write(user / ".lmstudio/models/org/repo/studio.Q4_0.gguf")
    ollama = user / ".ollama/models"
    write(ollama / "blobs/sha256-1234")
    manifest = ollama / "manifests/registry.example/library/llama/7b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:1234"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (manifest.parent / "broken").write_text("{")
    evil = layer | {"digest": "../../../../etc/passwd"}
    (manifest.parent / "evil").write_text(json.dumps({"layers": [evil]}))
    write(tmp_path / "mine/own.gguf")
    registry = opened(model_dirs=[str(tmp_path / "mine")])
    sources = {m.id: m.source for m in registry.models()}
    assert sources == {
        "hub-model": "huggingface",
        "studio": "lmstudio",
        "llama-7b": "ollama",
        "own": "config",
    }
    assert ids(opened(scan_default_stores=False)) == []


def test_odd_folders_do_not_stop_the_scan(opened: Open, tmp_path: Path) -> None:
    models = tmp_path / "home/models"
    write(models / "good.gguf")
    (models / "loop").symlink_to(models)
    (models / "dangling.gguf").symlink_to(tmp_path / "nowhere.gguf")
    (models / "folder.gguf").mkdir()
    write(models / ".partial/half.gguf")
    assert ids(opened()) == ["good"]


def test_projector_is_no_model_of_its_own(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/mmproj.gguf", LLAMA | {"general.architecture": "clip"})
    assert ids(opened()) == []


def test_configuration_gives_aliases_and_options(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/m.gguf")
    registry = opened('[models.m]\naliases = ["gpt-4"]\nn_ctx = 1024\nslots = 3\n')
    model = registry.find("GPT-4")
    assert model.id == "m" and model.options == {"n_ctx": 1024, "slots": 3}


def test_corrupt_database_is_set_aside_and_rescanned(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/m.gguf")
    (tmp_path / "home/registry.sqlite").write_bytes(b"no database at all" * 1000)
    registry = opened()
    assert ids(registry) == ["m"]
    assert registry.set_aside and registry.set_aside.name == "registry.sqlite.corrupt-1"


def test_remove_deletes_only_what_is_ours(opened: Open, tmp_path: Path) -> None:
    mine = write(tmp_path / "home/models/m.gguf")
    theirs = write(tmp_path / "theirs/t.gguf")
    registry = opened(model_dirs=[str(theirs.parent)])
    with pytest.raises(Conflict, match="not ours to delete"):
        registry.remove("t")
    assert registry.remove("m") == [str(mine)]
    assert theirs.exists() and not mine.exists() and ids(registry) == ["t"]


def test_measurements_survive_a_restart(opened: Open, tmp_path: Path) -> None:
    registry = opened()
    assert registry.load_seconds("m") is None and registry.footprint("m") is None
    registry.record_load("m", 1.5)
    registry.record_footprint("m", {"ram": 10})
    again = opened()
    assert again.load_seconds("m") == 1.5 and again.footprint("m") == {"ram": 10}


def test_unreadable_file_is_listed_with_the_reason(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "home/models/m.gguf")
    if os.geteuid() == 0:  # root may read everything: let the open fail as it would for others
        import uml.supervisor.registry as module

        def refuse(_: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module, "read_facts", refuse)
    else:
        path.chmod(0)
    (model,) = opened().models()
    assert model.error == "cannot be read: Permission denied"
