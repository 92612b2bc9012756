"""Models are found where they are."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.supervisor.formats import hf
from tests.supervisor.formats.ggufs import write
from tests.supervisor.opened import Open, ids
from uml.protocol.errors import InvalidModel
from uml.supervisor import registry as registry_module
from uml.supervisor.scan import Scanner


@pytest.mark.parametrize(("ending", "first", "missing"), [("gguf", 1, 2), ("GGUF", 2, 1)])
def test_sharded_model_is_one_and_names_a_missing_part(
    opened: Open, tmp_path: Path, ending: str, first: int, missing: int
) -> None:
    folder = tmp_path / "home/models"
    write(folder / f"m-0000{first}-of-00002.{ending}")
    registry = opened()
    with pytest.raises(InvalidModel, match=f"part {missing} of 2 is missing"):
        registry.find("m")
    write(folder / f"m-0000{missing}-of-00002.{ending}", tensors={"b": ((64,), 0, 256)})
    assert len(registry.find("m").file.paths) == 2 and ids(registry) == ["m"]


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
    assert registry.find("llama:7b").id == "llama-7b" and registry.find("o/r").id == "hub-model"
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
    (models / "itself.gguf").symlink_to("itself.gguf")
    (models / "itself").symlink_to("itself")
    (models / "folder.gguf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (models / "linked.gguf").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(models / "pipe.gguf")
    write(models / ".partial/half.gguf")
    registry = opened()
    assert ids(registry) == ["good", "itself"]
    with pytest.raises(InvalidModel, match="cannot be read: Too many levels of symbolic links"):
        registry.find("itself")


def test_linked_folders_are_searched_and_links_are_one_model(opened: Open, tmp_path: Path) -> None:
    other = write(tmp_path / "disk/m.gguf")
    models = tmp_path / "home/models"
    models.mkdir(parents=True)
    (models / "disk").symlink_to(other.parent)
    os.link(other, models / "hard.gguf")
    (models / "soft.gguf").symlink_to(other)
    assert ids(opened()) == ["hard"]


def test_search_sees_what_changes_faster_than_the_clock(opened: Open, tmp_path: Path) -> None:
    """A folder whose time stamp does not tell that it changed, as two changes at once leave it."""
    folder = tmp_path / "home/models"
    write(folder / "a.gguf")
    registry = opened()
    assert ids(registry) == ["a"]
    stamp = os.stat(folder).st_mtime_ns
    write(folder / "b.gguf")
    os.utime(folder, ns=(stamp, stamp))
    assert ids(registry) == ["a", "b"]


def test_unchanged_folders_cost_little(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home/models"
    for n in range(100):
        write(folder / f"d{n}/m{n}.gguf")
        os.utime(folder / f"d{n}", (0, 0))
    registry = opened()
    assert len(registry.models()) == 100
    spent = []
    for _ in range(5):
        begin = time.process_time()
        registry.models()
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.02  # 3 ms where it was written
    monkeypatch.setattr(
        registry_module, "read_facts", lambda _: pytest.fail("a header is read again")
    )
    registry.models()
    assert len(opened().models()) == 100, "a restart reads none either"


def test_folders_are_listed_again_now_and_then(tmp_path: Path) -> None:
    now = 1e9
    scanner = Scanner([(tmp_path, "config")], lambda: now)
    os.utime(tmp_path, (1, 1))
    assert scanner.find() == []
    write(tmp_path / "m.gguf")
    os.utime(tmp_path, (1, 1))  # a file system whose stamps lag
    assert scanner.find() == []
    now += 61
    assert [f.name for f in scanner.find()] == ["m.gguf"]


def test_folder_of_safetensors_is_one_model_and_called_as_it_is(
    opened: Open, tmp_path: Path
) -> None:
    models, hub = tmp_path / "home/models", tmp_path / "user/.cache/huggingface/hub"
    hf.write(models / "Tiny-Instruct", hf.TINY, hf.llama(hf.TINY), parts=3)
    (models / "Tiny-Instruct/tokenizer.json").write_text("{}")
    (models / "Tiny-Instruct/adapter_model.safetensors").write_bytes(b"no model of its own")
    snapshot = hub / "models--org--Far-1.5B/snapshots/0123abcd"
    hf.write(snapshot, hf.TINY, hf.llama(hf.TINY))
    registry = opened()
    assert ids(registry) == ["far-1.5b", "tiny-instruct"]
    model = registry.find("Tiny-Instruct")
    assert (model.file.format, model.backend) == ("safetensors", None)
    assert len([p for p in model.file.paths if p.endswith(".safetensors")]) == 3
    assert registry.find("org/Far-1.5B").id == "far-1.5b", "as the hub calls it"
    gone = [os.path.basename(p) for p in registry.remove("tiny-instruct")]
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} < set(gone)
    assert ids(registry) == ["far-1.5b"]


def test_half_of_a_folder_is_listed_with_what_is_missing(opened: Open, tmp_path: Path) -> None:
    path = hf.write(tmp_path / "home/models/tiny", hf.TINY, hf.llama(hf.TINY))
    config = (path.parent / "config.json").read_bytes()
    (path.parent / "config.json").unlink()
    registry = opened()
    with pytest.raises(InvalidModel, match=r"config.json is missing beside model.safetensors"):
        registry.find("tiny")
    (path.parent / "config.json").write_bytes(config)
    assert registry.find("tiny").facts
