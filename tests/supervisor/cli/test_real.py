"""Commands as processes, against a server that is one too, with the fake backend."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uml.protocol import errors
from uml.supervisor.client import AsyncClient, Client

RUN = [sys.executable, str(Path(__file__).resolve().parents[3] / "run.py")]
HELLO = [{"role": "user", "content": "hello"}]
DEADLINE_S = 30.0


class World:
    """A home with fake models, and what it takes to run commands in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.url = home, ""
        self.env = os.environ | {
            "UML_HOME": str(home),
            "UML_SCAN_DEFAULT_STORES": "false",
            "PYTHONUNBUFFERED": "1",
        }
        (home / "models").mkdir(parents=True)
        self.model("talker")
        self.model("vectors", type="embedding", tasks=["embed"])
        self.model("endless", options={"token_delay": 0.01})

    def model(self, name: str, **facts: object) -> None:
        path = self.home / "models" / f"{name}.fake.json"
        path.write_text(json.dumps({"name": name, **facts}))

    def point_to(self, url: str) -> None:
        self.url = self.env["UML_URL"] = url

    def start(self, *argv: str, **options: object) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*RUN, *argv], env=self.env, text=True, **(pipes | options))  # type: ignore[call-overload,no-any-return]

    def uml(self, *argv: str, stdin: str | None = None) -> tuple[int, str, str]:
        process = self.start(*argv, **({"stdin": subprocess.PIPE} if stdin is not None else {}))
        out, err = process.communicate(stdin, timeout=DEADLINE_S)
        assert "Traceback" not in err and "\x1b" not in out + err
        return process.returncode, out, err


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("served") / "home")
    process = world.start("serve", "--port", "0", "--headless", stderr=subprocess.DEVNULL)
    assert process.stdout
    with process:
        first = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", first)
        assert found, first
        world.point_to(found[1])
        yield world
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.fixture
def world(served: World) -> Iterator[World]:
    yield served
    Client(served.url).unload(all=True, force=True)


def test_a_model_is_asked_listed_and_unloaded(world: World) -> None:
    code, out, err = world.uml("run", "talker", "who", "--max-tokens", "3", "-v")
    assert code == 0 and out.split() == ["talker", "tok1", "tok2"]
    assert re.search(r"\d+ tokens in, 3 out", err)
    code, out, _ = world.uml("ps", "--json")
    assert [(w["model"], w["state"]) for w in json.loads(out)] == [("talker", "ready")]
    code, out, _ = world.uml("unload", "talker")
    assert code == 0 and re.match(r"talker: freed .* in \d+ ms.*verified", out)
    assert world.uml("ps")[:2] == (0, "")


def test_what_is_piped_in_is_part_of_the_prompt(world: World) -> None:
    code, out, _ = world.uml("run", "talker", "--max-tokens", "1", stdin="say=piped\n")
    assert (code, out.split()) == (0, ["piped"])


def test_an_embedding_model_answers_with_a_vector(world: World) -> None:
    code, out, _ = world.uml("run", "vectors", "some text", "--json")
    assert code == 0 and len(json.loads(out)["data"][0]["embedding"]) == 8
    assert world.uml("run", "vectors", "some text")[1].startswith("8 dimensions: ")


def test_swap_makes_room_and_shows_the_receipts(world: World) -> None:
    assert world.uml("load", "talker")[0] == 0
    code, out, _ = world.uml("swap", "endless", "--dry-run")
    assert code == 0 and "goes    talker" in out
    code, out, _ = world.uml("swap", "endless")
    assert code == 0
    receipt, loaded, _ = out.splitlines()
    assert receipt.startswith("talker: freed ") and loaded.startswith("endless: loaded in ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run talker fail", "error: failed on command"),
        ("run talekr hi", "error: model 'talekr' is not known"),
        ("load talker --url http://127.0.0.1:1", "error: no supervisor answers"),
        ("rm nothing", "error: model 'nothing' is not known"),
        ("backends install nothing", "error: no backend 'nothing'"),
    ],
)
def test_failures_are_one_line_and_a_hint(world: World, line: str, told: str) -> None:
    code, _, err = world.uml(*line.split())
    assert code == (3 if "--url" in line else 1)
    said = [li for li in err.splitlines() if not re.search("(starting|loading)", li)]
    assert said[0].startswith(told) and len(said) <= 2


def test_ctrl_c_ends_a_command_with_130_and_its_request(world: World) -> None:
    process = world.start("run", "endless", "hi", "--max-tokens", "100000")
    assert process.stdout and process.stderr
    with process:
        assert process.stdout.read(4) == "tok0"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert "Traceback" not in process.stderr.read()
    _until(lambda: _busy(world, "endless") == 0)


def _busy(world: World, model: str) -> int:
    workers = Client(world.url).status().workers
    return sum(w.busy for w in workers if w.model == model)


def _until(holds: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_rm_deletes_the_file_but_not_of_a_loaded_model(world: World) -> None:
    world.model("passing")
    assert world.uml("load", "passing")[0] == 0
    code, _, err = world.uml("rm", "passing")
    assert code == 1 and "unload" in err
    world.uml("unload", "passing")
    assert world.uml("rm", "passing")[0] == 0
    assert "passing" not in world.uml("ls")[1]
    assert not (world.home / "models" / "passing.fake.json").exists()


def test_a_second_server_at_the_same_address_says_who_is_there(world: World) -> None:
    port = world.url.rpartition(":")[2]
    code, out, err = world.uml("serve", "--port", port)
    assert code == 1 and not out and "already running" in err
    assert world.uml("up", "--port", port)[0] == 0


def test_a_reader_that_has_seen_enough_is_no_error(world: World) -> None:
    command = f"{' '.join(RUN)} logs -n 1000 | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=world.env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


class Terminal:
    """A command on a terminal, to type at and to read."""

    def __init__(self, world: World, *argv: str) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        env = world.env | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [*RUN, *argv], env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """Everything up to `text`, which must come."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen!r}"
            self._read(0.1)
        before, _, self.seen = self.seen.partition(text)
        return before

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._master], [], [], wait_s)[0]:
            return False
        try:
            found = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.seen += found.decode(errors="replace")
        return bool(found)

    def end(self) -> int:
        code = self.process.wait(DEADLINE_S)
        while self._read(0):
            pass
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def test_a_conversation_on_a_terminal(world: World) -> None:
    with contextlib.closing(Terminal(world, "run", "talker", "--max-tokens", "2")) as terminal:
        terminal.until(">>> ")
        terminal.type("say=first\r")
        assert "first tok1" in terminal.until(">>> ")
        terminal.type("fail\r")
        assert "error: failed on command" in terminal.until(">>> ")
        terminal.type('"""two\rsay=lines"""\r')
        assert "lines tok1" in terminal.until(">>> ")
        terminal.type("/clear\r")
        terminal.until(">>> ")
        terminal.type("/nonsense\r")
        assert "unknown command" in terminal.until(">>> ")
        terminal.type("/bye\r")
        assert terminal.end() == 0


def test_ctrl_c_stops_an_answer_and_not_the_conversation(world: World) -> None:
    command = ("run", "endless", "--max-tokens", "100000")
    with contextlib.closing(Terminal(world, *command)) as terminal:
        terminal.until(">>> ")
        terminal.type("hi\r")
        terminal.until("tok1 ")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.until(">>> ")
        _until(lambda: _busy(world, "endless") == 0)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_tables_have_colour_on_a_terminal_alone(world: World) -> None:
    with contextlib.closing(Terminal(world, "ls")) as terminal:
        assert terminal.end() == 0
        assert "\x1b[1mNAME" in terminal.seen


def test_a_bar_follows_a_load_on_a_terminal(world: World) -> None:
    world.model("heavy", options={"slow_load": 1})
    with contextlib.closing(Terminal(world, "load", "heavy")) as terminal:
        terminal.until("heavy: loading")
        terminal.until("%")
        assert terminal.end() == 0
        assert "heavy: loaded in" in terminal.seen


def test_a_server_in_the_background_lives_on_and_is_stopped(tmp_path: Path) -> None:
    world = World(tmp_path / "home")
    code, out, err = world.uml("serve", "-d", "--port", "0", "--load", "talker")
    found = re.fullmatch(r"listening on (\S+) \(pid (\d+)\)\n", out)
    assert code == 0 and found, err
    world.point_to(found[1])
    try:
        _until(lambda: "talker" in world.uml("ps")[1])
        assert os.getsid(int(found[2])) == int(found[2])
        log = world.home / "logs" / "supervisor.log"
        with Path("/proc", found[2], "fd/2").open("ab") as file:
            file.write(b"something that a library printed\n" * (11 << 15))
        _until(lambda: (log.with_name("supervisor.log.1")).exists())
        assert world.uml("unload", "talker")[0] == 0
        assert "worker.released" in log.read_text() and log.stat().st_size < 1 << 20
    finally:
        code, out, err = world.uml("stop")
    assert code == 0, err
    assert not Path("/proc", found[2]).exists() or _is_zombie(found[2])
    assert world.uml("stop")[0] == 3
    world.env |= {"UML_URL": "", "UML_PORT": found[1].rpartition(":")[2]}
    code, out, _ = world.uml("logs", "-n", "100000")
    assert code == 0 and out.count("something that a library printed") > 90_000
    code, out, _ = world.uml("logs", "-n", "20")
    lines = out.splitlines()
    assert len(lines) == 20 and "something that a library printed" in lines[0]
    assert "supervisor.ended" in lines[-1], "from both files, in order"


def _is_zombie(pid: str) -> bool:
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_run_starts_a_server_when_none_is_up(tmp_path: Path) -> None:
    world = World(tmp_path / "home")
    world.env["UML_PORT"] = "0"
    code, out, err = world.uml("run", "talker", "--max-tokens", "1", "say=hi")
    log = (world.home / "logs" / "supervisor.log").read_text()
    found = re.search(r"listening on (\S+)", log)
    assert found, err
    world.point_to(found[1])
    assert world.uml("stop")[0] == 0
    assert (code, out.split()) == (0, ["hi"]), err


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    world = World(tmp_path / "home")
    code, _, err = world.uml("serve", "-d", "--port", "0", "--host", "0.0.0.0")
    assert code == 1 and err.startswith("error: ") and "api_key" in err


def test_the_client_asks_a_real_server(world: World) -> None:
    client = Client(world.url)
    told: list[str] = []
    assert client.load("talker", on_progress=lambda s, f: told.append(s)).state == "ready"
    assert told
    answer = client.chat.completions.create(model="talker", messages=HELLO, max_tokens=2)
    assert answer.choices[0].message.content.split() == ["tok0", "tok1"]
    stream = client.completions.create(model="talker", prompt="p", max_tokens=3, stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices).split() == [
        *("tok0", "tok1", "tok2"),
    ]
    vectors = client.embeddings.create(model="vectors", input=["a", "b"]).data
    assert [len(v.embedding) for v in vectors] == [8, 8]
    assert {m.id for m in client.models.list().data} >= {"talker", "vectors"}
    assert client.models.retrieve("talker").id == "talker"
    with pytest.raises(errors.ModelNotFound):
        client.models.retrieve("nobody")
    with pytest.raises(errors.TaskNotSupported):
        client.chat.completions.create(model="vectors", messages=HELLO)


def test_an_abandoned_stream_frees_its_slot(world: World) -> None:
    client = Client(world.url)
    with client.chat.completions.create(
        model="endless", messages=HELLO, max_tokens=100_000, stream=True
    ) as stream:
        next(stream)
        assert _busy(world, "endless") == 1
    _until(lambda: _busy(world, "endless") == 0)


async def test_the_async_client_asks_many_at_once(world: World) -> None:
    async with AsyncClient(world.url) as client:

        async def ask(word: str) -> str:
            said = [{"role": "user", "content": f"say={word}"}]
            stream = await client.chat.completions.create(
                model="talker", messages=said, max_tokens=1, stream=True
            )
            deltas = [c.choices[0].delta.content async for c in stream if c.choices]
            return "".join(d or "" for d in deltas)

        words = [f"w{n}" for n in range(12)]
        assert [a.strip() for a in await asyncio.gather(*map(ask, words))] == words
