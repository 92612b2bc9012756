"""What hears and speaks has a server that keeps what it loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.serving import Serving, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, speech: None) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("home"), UML_KEEP_ALIVE="-1") as s:
        yield s
