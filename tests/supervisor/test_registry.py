"""Models are found where they are, keep their names, and broken ones say why."""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.formats.ggufs import LLAMA, write
from tests.supervisor.formats.speech import voice, whisper
from tests.supervisor.opened import Open, ids
from uml.protocol.errors import Conflict, InternalError, InvalidModel, ModelNotFound
from uml.supervisor import registry as registry_module


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


def test_speech_models_are_found_by_their_names_and_broken_ones_say_why(
    opened: Open, tmp_path: Path
) -> None:
    registry, folder = opened(), tmp_path / "home/models"
    path = voice(folder)
    (folder / "ggml-tiny.en.bin").write_bytes(whisper())
    (folder / "ggml-broken.bin").write_bytes(whisper()[:-9])
    (folder / "pytorch_model.bin").write_bytes(b"somebody else's")
    assert ids(registry) == ["joe", "whisper-broken", "whisper-tiny-en"]
    joe, stt = registry.find("joe"), registry.find("ggml-tiny.en")
    assert (joe.backend, joe.file.format) == ("piper", "piper")
    assert (stt.backend, stt.id) == ("whisper_cpp", "whisper-tiny-en")
    with pytest.raises(InvalidModel, match="cut off"):
        registry.find("whisper-broken")
    voice(folder, "en_US-joe-low")
    assert "joe-low" in ids(registry)
    os.unlink(f"{path}.json")
    with pytest.raises(InvalidModel, match="configuration"):
        registry.find("joe")
    assert sorted(os.path.basename(p) for p in registry.remove("joe-low")) == [
        "en_US-joe-low.onnx",
        "en_US-joe-low.onnx.json",
    ]


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


def test_template_from_the_configuration_lets_a_base_model_chat(
    opened: Open, tmp_path: Path
) -> None:
    bare = {k: v for k, v in LLAMA.items() if k != "tokenizer.chat_template"}
    write(tmp_path / "home/models/base.gguf", bare)
    assert "chat" not in opened().find("base").facts.tasks  # type: ignore[union-attr]
    registry = opened('[models.base]\nchat_template = "{{ messages[0].content }}"')
    assert registry.find("base").facts.tasks[:2] == ("chat", "complete")  # type: ignore[union-attr]


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


def test_unknown_name_tells_the_nearest(opened: Open, tmp_path: Path) -> None:
    registry = opened()
    with pytest.raises(ModelNotFound, match="uml pull starter/chat"):
        registry.find("x")
    write(tmp_path / "home/models/smollm2-135m.gguf")
    with pytest.raises(ModelNotFound, match="did you mean smollm2-135m"):
        registry.find("smolm2")


MMPROJ = {
    "general.architecture": "clip",
    "clip.has_vision_encoder": True,
    "clip.vision.projection_dim": 64,
}


def test_projector_is_no_model_of_its_own(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/mmproj.gguf", MMPROJ)
    assert ids(opened()) == []


def test_projector_belongs_to_the_model_beside_it(opened: Open, tmp_path: Path) -> None:
    models = tmp_path / "home/models"
    write(models / "see/see-it.Q4_0.gguf")
    eye = write(models / "see/mmproj-see-it-f16.gguf", MMPROJ)
    write(models / "text.gguf")
    write(models / "wide.gguf", LLAMA | {"llama.embedding_length": 128})
    registry = opened()
    seeing = registry.find("see-it").facts
    assert seeing and seeing.type == "multimodal" and seeing.extra["projector"] == str(eye)
    assert {m.facts.type for m in registry.models() if m.facts and m.id != "see-it"} == {"llm"}
    assert registry.remove("see-it") == [str(models / "see/see-it.Q4_0.gguf"), str(eye)]


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


def _connect_impatiently(connect: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    return connect(*args, **kw | {"timeout": 0})


def test_database_that_is_only_locked_is_kept(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().close()
    other = sqlite3.connect(tmp_path / "home/registry.sqlite")
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        connect = functools.partial(_connect_impatiently, sqlite3.connect)
        monkeypatch.setattr(sqlite3, "connect", connect)
        with pytest.raises(InternalError, match="locked"):
            opened()
    finally:
        other.close()
    assert not list((tmp_path / "home").glob("*.corrupt*"))


def test_database_that_cannot_be_written_costs_only_memory(opened: Open, tmp_path: Path) -> None:
    registry = opened()
    other = sqlite3.connect(tmp_path / "home/registry.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        registry._records._db.execute("PRAGMA busy_timeout = 0")
        write(tmp_path / "home/models/a/m.gguf")
        write(tmp_path / "home/models/b/m.gguf")
        assert ids(registry) == ids(registry) == ["m", "m-q4-0"]
        registry.record_load("m", 1.0)
    finally:
        other.close()


def test_id_of_a_moved_or_deleted_file_is_free_again(opened: Open, tmp_path: Path) -> None:
    models = tmp_path / "home/models"
    first = write(models / "m.Q8_0.gguf")
    registry = opened()
    assert ids(registry) == ["m"]
    registry.record_load("m", 2.0)
    (models / "sub").mkdir()
    first.rename(models / "sub/renamed.gguf")
    assert ids(registry) == ["m"] and registry.load_seconds("m") == 2.0, "it is the same file"
    (models / "sub/renamed.gguf").unlink()
    write(models / "m.Q4_0.gguf", LLAMA | {"general.name": "another"})
    assert ids(registry) == ["m"]


def test_id_waits_for_a_disk_to_come_back(opened: Open, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    write(disk / "m.Q8_0.gguf", LLAMA | {"general.name": "on the disk"})
    registry = opened(model_dirs=[str(disk)])
    assert ids(registry) == ["m"]
    disk.rename(tmp_path / "unplugged")
    write(tmp_path / "home/models/m.Q4_0.gguf")
    assert ids(registry) == ["m-q4-0"]
    (tmp_path / "unplugged").rename(disk)
    assert registry.find("m").file.path == str(disk / "m.Q8_0.gguf")


def test_another_file_in_its_place_has_its_own_measurements(opened: Open, tmp_path: Path) -> None:
    path = write(tmp_path / "home/models/m.gguf")
    registry = opened()
    registry.models()
    registry.record_load("m", 2.0)
    write(path, LLAMA | {"general.name": "of another length"})
    assert ids(registry) == ["m"] and registry.load_seconds("m") is None


def test_id_is_stronger_than_an_alias(opened: Open, tmp_path: Path) -> None:
    write(tmp_path / "home/models/a.gguf")
    write(tmp_path / "home/models/b.gguf")
    registry = opened('[models.a]\naliases = ["b", "c"]\n')
    assert [registry.find(n).id for n in ("a", "b", "c")] == ["a", "b", "a"]


def test_remove_does_not_follow_links_out_of_our_folder(opened: Open, tmp_path: Path) -> None:
    theirs = write(tmp_path / "theirs/t.gguf")
    (tmp_path / "home/models").mkdir(parents=True)
    (tmp_path / "home/models/link").symlink_to(theirs.parent)
    registry = opened()
    with pytest.raises(Conflict, match="not ours to delete"):
        registry.remove("t")
    assert theirs.exists()


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
    assert registry.load_seconds("m") is None and registry.footprint("hash", "so") is None
    registry.record_load("m", 1.5)
    registry.record_footprint("hash", "so", [{"ram": 10}])
    again = opened()
    assert again.load_seconds("m") == 1.5 and again.footprint("hash", "so") == [{"ram": 10}]


def test_footprints_of_a_file_are_bounded_and_the_newest_stay(opened: Open) -> None:
    registry = opened()
    for number in range(100):
        registry.record_footprint("hash", f"k{number}", [{"ram": number}])
    registry.record_footprint("other", "k0", [{"ram": 7}])
    assert registry.footprint("hash", "k99") == [{"ram": 99}]
    assert registry.footprint("hash", "k0") is None
    assert registry.footprint("other", "k0") == [{"ram": 7}]


def test_unreadable_file_is_listed_with_the_reason(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "home/models/m.gguf")
    if os.geteuid() == 0:  # root may read everything: let the open fail as it would for others

        def refuse(_: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(registry_module, "read_facts", refuse)
    else:
        path.chmod(0)
    registry = opened()
    (model,) = registry.models()
    assert model.error == "cannot be read: Permission denied"
    monkeypatch.undo()
    path.chmod(0o644)
    os.utime(path, (0, 0))
    registry.models()
    path.chmod(0o600)
    assert registry.find("m").error is None, "a permission has no time stamp"


def test_best_names_a_quantisation_of_the_same_model_and_of_no_other(
    opened: Open, tmp_path: Path
) -> None:
    models = tmp_path / "home/models"
    write(models / "m.Q8_0.gguf")
    write(models / "m.Q4_0.gguf", tensors={"b": ((64,), 0, 256)})
    write(models / "other.Q8_0.gguf")
    registry = opened()
    small, large = registry.find("m.Q4_0.gguf"), registry.find("m.Q8_0.gguf")
    assert registry.family(small) == [large, small]
    assert registry.find("m:best") is large and registry.find("OTHER:best").id == "other"
    registry.best = lambda found: found[-1]
    assert registry.find("m:best") is small
    with pytest.raises(ModelNotFound):
        registry.find("nobody:best")
