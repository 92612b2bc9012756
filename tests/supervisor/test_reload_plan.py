"""What a reload of the configuration would change."""

from __future__ import annotations

from pathlib import Path

from tests.supervisor.served import put_model
from uml.supervisor.checks import doubts
from uml.supervisor.config import Config, load_config
from uml.supervisor.registry import Registry
from uml.supervisor.reload import plan


def config(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "some.toml"
    path.write_text(text)
    return load_config(path, env={}, overrides={"home": str(tmp_path)})


def test_plan_names_each_change_and_when_it_takes_effect(tmp_path: Path) -> None:
    old = config(tmp_path, 'port = 1\napi_key = "s3cret"\n[models.a]\nn_ctx = 512\npriority = 1')
    new = config(tmp_path, 'port = 2\nkeep_alive = "1h"\n[models.a]\nn_ctx = 512\npriority = 2')
    found = plan(old, new, ["a", "b"])
    assert [(c.key, c.old, c.new, c.takes.value) for c in found.changes] == [
        ("port", 1, 2, "start"),
        ("api_key", "***", None, "now"),
        ("keep_alive", 300.0, 3600.0, "now"),
        ('models."a".priority', 1, 2, "now"),
    ]
    assert not found.restarts
    assert found.config.port == 1, "what waits for the start is not in force"
    assert found.config.keep_alive_s == 3600


def test_only_models_that_are_loaded_otherwise_restart(tmp_path: Path) -> None:
    old = config(tmp_path, "[models.a]\nn_ctx = 512\n[models.b]\nslots = 2\n[models.c]\nslots = 1")
    new = config(tmp_path, "[models.A]\nn_ctx = 512\n[models.b]\nslots = 3\n[models.c]\nslots = 2")
    assert plan(old, new, ["a", "b"]).restarts == {"b": ["slots"]}
    without = config(tmp_path, "")
    assert plan(old, without, ["a", "b"]).restarts == {"a": ["n_ctx"], "b": ["slots"]}
    assert plan(old, old, ["a", "b"]).changes == []


def test_doubts_name_what_nothing_here_is_called(tmp_path: Path) -> None:
    put_model(tmp_path, "alpha")
    text = 'preload = ["alpha", "gone"]\nstandby = ["fake", "what"]\n[models.alpa]\nslots = 2'
    read = config(tmp_path, "scan_default_stores = false\n" + text)
    registry = Registry(tmp_path / "r.sqlite", read, {}, env={})
    try:
        found = doubts(read, registry, ["fake"])
    finally:
        registry.close()
    assert len(found) == 3
    assert 'models."alpa"' in found[0] and "did you mean alpha" in found[0]
    assert "gone" in found[1] and "what" in found[2]
