"""`top` and `stats`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.stub_server import Sse, Stub, data
from uml.supervisor.cli import main
from uml.supervisor.usage import Usage, days_ago

MiB = 1 << 20
LOOK: dict[str, Any] = {
    "event": "live",
    "level": "debug",
    "at": 1.0,
    "version": "9",
    "url": "http://here",
    "state": "running",
    "uptime_s": 61.0,
    "devices": [{"name": "ram", "total_bytes": 8 << 30, "leased_bytes": 5 * MiB}],
    "workers": [
        {
            "id": "w1",
            "model": "tiny",
            "device": "ram",
            "memory_bytes": {"ram": 5 * MiB},
            "slots": 4,
            "busy": 2,
            "state": "ready",
            "pieces_per_s": 41.6,
        }
    ],
    "waiting": {"other": 3},
    "failed": [{"model": "bad"}],
    "usage": {"tiny": {"requests": 7, "errors": 1, "first_p50_s": 0.25, "tokens_per_s": 20.81}},
}
DAY = {
    "day": "2026-11-28",
    "model": "tiny",
    "requests": 7,
    "errors": 1,
    "cancelled": 2,
    "prompt_tokens": 70,
    "completion_tokens": 700,
    "first_s": 0.25,
    "tokens_per_s": 20.8,
    "loads": 3,
    "load_s": 1.5,
}


def test_top_shows_the_second_look_where_there_is_no_terminal(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    first = LOOK | {"version": "first"}
    other = {"event": "worker.ready", "level": "info", "at": 1.0}
    stub.routes["GET /events"] = Sse(data(first), data(other), data(LOOK), endless=True)
    assert main(["top"]) == 0
    out = capsys.readouterr().out
    assert "first" not in out and "3 requests waiting" in out and "8.0 GiB" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    expected = ["ram", "5.0", "MiB", "2/4", "-", "42", "7", "1", "250", "ms", "20.8", "ready"]
    assert rows["tiny"][1:] == expected
    assert rows["bad"][-1] == "failed"
    assert rows["other"][4] == "3" and rows["other"][-1] == "unloaded"
    assert stub.seen[-1][1] == "/events?live=1"


def test_top_as_json_is_a_look_a_line(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["GET /events"] = Sse(data(LOOK), data(LOOK), data(LOOK), endless=True)
    assert main(["top", "--json", "-n", "2"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [LOOK, LOOK]


def test_stats_are_a_table_with_a_total(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    total = DAY | {"day": "", "model": "", "requests": 14}
    stub.routes["GET /stats"] = {"days": [DAY, DAY | {"model": "other"}], "total": total}
    assert main(["stats", "--days", "7"]) == 0
    head, one, _, last = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["DAY", "MODEL", "REQUESTS"]
    assert one.split() == [
        *("2026-11-28", "tiny", "7", "1", "2", "70", "700"),
        *("250", "ms", "20.8", "3", "1.5", "s"),
    ]
    assert last.split()[:2] == ["total", "14"]
    assert stub.seen[-1][1] == "/stats?days=7"


def test_stats_are_told_without_a_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()

    async def use() -> None:
        usage = Usage(home / "registry.sqlite")
        usage.finished(usage.request("tiny", "chat"), {"completion_tokens": 5}, ["stop"])
        await usage.close()

    asyncio.run(use())
    assert main(["stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(d["day"], d["requests"]) for d in found["days"]] == [(days_ago(1), 1)]
    assert found["total"]["completion_tokens"] == 5
    assert main(["stats", "nobody"]) == 0
    assert "nothing was asked" in capsys.readouterr().err
