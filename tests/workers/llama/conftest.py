from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.llama.driver import WorkerProcess

CHAT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def chat_worker(llama_python: str, models_dir: Path) -> Iterator[WorkerProcess]:
    """One worker with the chat model for the tests of a file."""
    worker = WorkerProcess(llama_python, models_dir / CHAT_MODEL, n_ctx=2048, slots=16)
    yield worker
    worker.close()
