"""What several files of tests open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisor.opened import Open
from uml.plugins.loader import load_specs
from uml.supervisor.config import load_config
from uml.supervisor.registry import Registry


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
