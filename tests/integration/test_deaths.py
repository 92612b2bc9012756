"""Processes are killed in the worst moments; nobody is left, and the next request works."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.serving import fake_model, serving, until
from uml.protocol.errors import WorkerDied
from uml.supervisor import tree

NAMESPACES = pytest.mark.skipif(
    not tree.namespace_prefix(), reason="this kernel refuses PID namespaces; doctor says so"
)
#: A PATH without unshare(1) is a machine without PID namespaces.
PLAIN = {"PATH": "/nowhere"}


def test_kill_9_of_a_worker_in_mid_stream(tmp_path: Path) -> None:
    fake_model(tmp_path, "a")
    with serving(tmp_path) as s:
        stream = s.client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "slow=0.05"}],
            max_tokens=1000,
            stream=True,
        )
        seen = []
        with pytest.raises(WorkerDied, match="SIGKILL"):
            for chunk in stream:
                seen.append(chunk)
                if len(seen) == 5:
                    os.kill(s.worker("a")["pid"], signal.SIGKILL)
        answer = s.client.chat.completions.create(
            model="a", messages=[{"role": "user", "content": "who"}], max_tokens=2
        )
        assert answer.choices[0].message.content.startswith("a ")


def _start_and_collect(s: object, command: str) -> list[psutil.Process]:
    """Let the worker do `command`, and give every process below the supervisor."""
    client = s.client  # type: ignore[attr-defined]
    client.load("a")
    pid = s.worker("a")["pid"]  # type: ignore[attr-defined]
    if command:
        import threading

        def ask() -> None:
            try:
                client.chat.completions.create(
                    model="a", messages=[{"role": "user", "content": command}]
                )
            except Exception:  # the supervisor dies under it: that is the test
                pass

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: s.worker("a")["busy"])  # type: ignore[attr-defined]
        s.asking = thread  # type: ignore[attr-defined]
    assert psutil.pid_exists(pid)
    return s.tree()[1:]  # type: ignore[attr-defined,no-any-return]


def _gone(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("options", [{}, {"spawn_child": "group"}, {"spawn_child": "setsid"}])
@pytest.mark.parametrize("command", ["", "hold_gil"])
@NAMESPACES
def test_kill_9_of_the_supervisor_leaves_nobody_alive(
    tmp_path: Path, options: dict[str, str], command: str
) -> None:
    fake_model(tmp_path, "a", options=options)
    with serving(tmp_path) as s:
        below = _start_and_collect(s, command)
        assert len(below) >= (3 if options else 2)
        s.process.kill()
        s.process.wait()
        until(lambda: _gone(below), 2.0)
        if command:
            s.asking.join()  # type: ignore[attr-defined]


def test_kill_9_without_namespaces_ends_the_worker_and_the_next_start_reaps_the_rest(
    tmp_path: Path,
) -> None:
    fake_model(tmp_path, "a", options={"spawn_child": "setsid"})
    with serving(tmp_path, **PLAIN) as s:
        below = _start_and_collect(s, "")
        worker = psutil.Process(s.worker("a")["pid"])
        s.process.kill()
        s.process.wait()
        until(lambda: _gone([worker]), 2.0)
        assert not _gone(below), "nothing but a namespace ends a child in a session of its own"
    with serving(tmp_path, **PLAIN):
        until(lambda: _gone(below), 5.0)
    assert not list((tmp_path / "ledger").iterdir())


def test_kill_9_leaves_nothing_of_an_engine_that_hid_itself(tmp_path: Path) -> None:
    """Shaped like vLLM's: sessions and names of their own, no environment, shared memory."""
    fake_model(tmp_path, "a", options={"engine": 20 << 20})
    segments = set(Path("/dev/shm").glob("*uml-*"))
    with serving(tmp_path, **PLAIN) as s:
        below = _start_and_collect(s, "")
        engine = [p for p in below if p.name().startswith("VLLM::")]
        assert len(engine) == 2 and all(p.environ() == {} for p in engine)
        assert len(set(Path("/dev/shm").glob("*uml-*")) - segments) >= 4
        s.process.kill()
        s.process.wait()
        until(lambda: not _gone(below) and _gone(below[:1]), 2.0)
        assert not _gone(engine), "nobody but the next start knows of them"
    with serving(tmp_path, **PLAIN):
        until(lambda: _gone(below), 5.0)
        until(lambda: set(Path("/dev/shm").glob("*uml-*")) <= segments, 5.0)
    assert not list((tmp_path / "ledger").iterdir())


def test_sigterm_lets_answers_finish_and_leaves_no_process(tmp_path: Path) -> None:
    fake_model(tmp_path, "a", options={"spawn_child": "setsid"})
    with serving(tmp_path) as s:
        stream = s.client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "slow=0.05"}],
            max_tokens=20,
            stream=True,
        )
        next(stream)
        below = s.tree()[1:]
        s.process.send_signal(signal.SIGTERM)
        words = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert words.split()[-1] == "tok19"
        assert s.process.wait(10) == 0
        assert _gone(below)


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    fake_model(tmp_path, "a")
    with serving(tmp_path) as s:
        stream = s.client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "slow=0.2"}],
            max_tokens=10_000,
            stream=True,
        )
        next(stream)
        below = s.tree()[1:]
        s.process.send_signal(signal.SIGINT)
        until(lambda: _refuses(s))
        s.process.send_signal(signal.SIGINT)
        s.process.wait(5)
        until(lambda: _gone(below), 2.0)
        stream.close()


def _refuses(s: object) -> bool:
    try:
        return bool(s.client.status()["state"] != "running")  # type: ignore[attr-defined]
    except Exception:  # it may be gone already
        return True
