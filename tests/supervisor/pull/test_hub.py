"""hf: sources, with the real huggingface_hub library against a stub of the hub's HTTP API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.formats.ggufs import LLAMA, gguf
from tests.supervisor.pull.hubstub import hub
from tests.supervisor.pull.servers import serve

pytest.importorskip("huggingface_hub", reason="the extra `hf` is not installed")
ROOT = Path(__file__).resolve().parents[3]
SHA = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys, types
u = types.ModuleType('uml'); u.__path__ = [sys.argv[1]]; sys.modules['uml'] = u
from pathlib import Path
from uml.protocol.errors import UmlError
from uml.supervisor.pull import pull
try:
    seen = []
    found = pull(sys.argv[2], Path(sys.argv[3]), progress=lambda *a: seen.append(a))
    print(*(p.name for p in found), *seen[-1:])
except UmlError as e:
    print(type(e).__name__, e.message)
"""


def run(url: str, source: str, home: Path) -> str:
    """The library reads its settings when imported, so each pull has a process of its own."""
    env = {
        "HF_ENDPOINT": url,
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT), source, str(home)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hub_pull_fetches_the_wanted_quantisation(tmp_path: Path) -> None:
    data = gguf(LLAMA, {"t": ((64,), 0, 256)})
    with hub("org/repo", SHA, {"m-Q4_0.gguf": data, "m-Q8_0.gguf": data + b"\0"}) as url:
        size = len(data) + 1
        said = run(url, "hf:org/repo:Q8_0", tmp_path)
        assert said == f"m-Q8_0.gguf ('m-Q8_0.gguf', {size}, {size})", "and how far it is"
        assert run(url, "hf:org/repo:Q8_0", tmp_path) == "m-Q8_0.gguf", "there already"
    assert (tmp_path / "models/m-Q8_0.gguf").read_bytes() == data + b"\0"
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [".partial", "m-Q8_0.gguf"]


def test_hub_pull_takes_all_parts_of_a_folder(tmp_path: Path) -> None:
    files = {
        "Q4_0/m-00001-of-00002.gguf": gguf(LLAMA, {"a": ((64,), 0, 256)}),
        "Q4_0/m-00002-of-00002.gguf": gguf(LLAMA, {"b": ((64,), 0, 256)}),
    }
    with hub("org/repo", SHA, files) as url:
        said = run(url, "hf:org/repo", tmp_path)
    assert said.startswith("m-00001-of-00002.gguf m-00002-of-00002.gguf")


def test_hub_file_that_came_wrong_is_refused(tmp_path: Path) -> None:
    with hub("org/repo", SHA, {"m.gguf": gguf(LLAMA, {})}, lfs="0" * 64) as url:
        assert run(url, "hf:org/repo", tmp_path).startswith("InvalidModel m.gguf came with the wr")
    assert not list((tmp_path / "models").glob("*.gguf"))


def test_dead_hub_is_told(tmp_path: Path) -> None:
    said = run("http://127.0.0.1:9", "hf:org/repo", tmp_path)
    assert said.startswith("Unavailable org/repo could not be fetched from the hub")


def test_hub_repository_that_is_not_there_says_so(tmp_path: Path) -> None:
    with serve() as site:
        site.files["/nothing"] = json.dumps({}).encode()
        said = run(site.url, "hf:org/none", tmp_path)
    assert said.startswith(("NotFound", "Unauthorized")) and "org/none" in said
