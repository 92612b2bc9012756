"""The canary against workers that do what broken libraries do."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from uml.protocol.errors import LoadFailed
from uml.protocol.models import BackendSpec
from uml.supervisor import canary

ROOT = Path(__file__).resolve().parents[2]
SPEC = BackendSpec("x", "uml.workers.x:X", ("x",), ("chat",), environ={"GOMP_SPINCOUNT": "7"})


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a file the worker's entry: `send` and `receive` are at hand in it."""

    def make(body: str) -> None:
        head = f"""
        import os, signal, subprocess, sys, time, types
        uml = types.ModuleType("uml"); uml.__path__ = [{str(ROOT)!r}]; sys.modules["uml"] = uml
        sys.path += {sys.path!r}
        from uml.protocol.errors import LoadFailed
        from uml.protocol.frames import Decoder
        from uml.protocol.messages import *
        def send(message): os.write(1, pack(message))
        def receive():
            decoder = Decoder()
            while True:
                for data in decoder.feed(os.read(0, 65536)): return parse(data)
        """
        path = tmp_path / "main.py"
        path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        monkeypatch.setattr(canary, "WORKER_MAIN", path)

    return make


def test_canary_without_a_model_is_content_with_hello(worker) -> None:
    worker("send(Hello('x', os.getpid(), versions={'lib': '1'})); time.sleep(60)")
    started = time.monotonic()
    assert canary.run_canary(sys.executable, SPEC) == {"lib": "1"}
    assert time.monotonic() - started < 30


def test_canary_with_a_model_waits_for_ready(worker, tmp_path: Path) -> None:
    worker("""
        send(Hello('x', 1, versions={'lib': '1'}))
        load = receive()
        assert load.files == [sys.argv[0]], load
        send(Progress('weights', 0.5)); send(Ready(1)); time.sleep(60)
    """)
    model = tmp_path / "main.py"
    assert canary.run_canary(sys.executable, SPEC, model) == {"lib": "1"}


def test_canary_explains_an_illegal_instruction(worker, tmp_path: Path) -> None:
    worker("""
        send(Hello('x', 1)); receive(); print('loading', file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGILL)
    """)
    with pytest.raises(LoadFailed, match=r"(?s)SIGILL.*instructions.*loading"):
        canary.run_canary(sys.executable, SPEC, tmp_path / "m")


def test_canary_passes_on_the_workers_own_error(worker, tmp_path: Path) -> None:
    worker("send(Hello('x', 1)); receive(); send(Error(LoadFailed('no such tensor').to_wire()))")
    with pytest.raises(LoadFailed, match="no such tensor"):
        canary.run_canary(sys.executable, SPEC, tmp_path / "m")


def test_canary_shows_the_last_lines_of_a_crash(worker) -> None:
    worker("raise ImportError('libfoo.so.3 is not there')")
    with pytest.raises(LoadFailed, match=r"libfoo\.so\.3"):
        canary.run_canary(sys.executable, SPEC)


@pytest.mark.parametrize("said", ["b'\\xff\\xff\\xff\\xff'", "b'\\0\\0\\0\\1\\xc1'"])
def test_canary_survives_garbage(worker, said: str) -> None:
    worker(f"os.write(1, {said}); time.sleep(60)")
    with pytest.raises(LoadFailed):
        canary.run_canary(sys.executable, SPEC)


def test_canary_that_hangs_is_ended(worker) -> None:
    worker("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    with pytest.raises(LoadFailed, match="in time"):
        canary.run_canary(sys.executable, SPEC, timeout_s=0.5)


def test_canary_takes_its_children_along(worker, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    worker(f"""
        child = subprocess.Popen(['sleep', '60'])
        open({str(note)!r}, 'w').write(str(child.pid))
        send(Hello('x', 1)); time.sleep(60)
    """)
    canary.run_canary(sys.executable, SPEC)
    pid, deadline = int(note.read_text()), time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_canary_environment_is_built_and_not_copied(
    worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    worker("send(Hello('x', 1, versions=dict(os.environ)))")
    environ = canary.run_canary(sys.executable, SPEC)
    assert environ["GOMP_SPINCOUNT"] == "7" and environ["PATH"] == os.environ["PATH"]
    assert "HF_TOKEN" not in environ and "PYTHONPATH" not in environ


@pytest.mark.llama
def test_canary_decodes_with_the_real_library(llama_python: str, models_dir: Path) -> None:
    from uml.plugins.builtin import LLAMA_CPP

    model = models_dir / "SmolLM2-135M-Instruct.Q4_1.gguf"
    versions = canary.run_canary(llama_python, LLAMA_CPP, model)
    assert versions["llama-cpp-python"] in LLAMA_CPP.requirements[0]
