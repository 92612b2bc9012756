"""What is counted of requests and loads, kept by day, and shown as metrics."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.supervisor.house import House, Reader, chat, house, until
from tests.supervisor.served import Served, served
from uml.protocol.errors import WorkerDied
from uml.supervisor.api.metrics import Page
from uml.supervisor.usage import SECONDS, Histogram, Usage, days_ago, read, together


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(values=st.lists(st.floats(0, 200), min_size=1), share=st.floats(0, 1))
def test_a_quantile_lies_within_its_bucket(values: list[float], share: float) -> None:
    found = Histogram(SECONDS)
    for value in values:
        found.add(value)
    assert found.count == len(values) and found.total == pytest.approx(sum(values))
    rank = max(1, -(-share * len(values) // 1))
    true = sorted(values)[int(rank) - 1]
    guess = found.quantile(share)
    below = max((e for e in SECONDS if e < true), default=0.0)
    above = min((e for e in SECONDS if e >= true), default=SECONDS[-1])
    assert guess is not None and below - 1e-3 <= guess <= above + 1e-3


async def test_sums_by_day_and_model_survive_and_add_up(tmp_path: Path) -> None:
    path, clock, day = tmp_path / "r.sqlite", Clock(), ["2026-01-01"]
    for start in range(2):
        usage = Usage(path, clock, lambda: day[0])
        for number in range(3):
            request = usage.request("m", "chat")
            clock.now += 1.0
            request.granted_at = clock.now
            clock.now += 1.0
            request.first_at = clock.now
            clock.now += 2.0
            tokens = {"prompt_tokens": 5, "completion_tokens": 21, "cached_tokens": 1}
            usage.finished(request, tokens, ["stop"])
            if number == 1:
                day[0] = f"2026-01-0{start + 2}"
        usage.loaded("m", 0.5)
        usage.failed(usage.request("m", "chat"), WorkerDied("gone"))
        usage.cancelled(usage.request("n", "embed"))
        await usage.close()
    rows = read(path)
    assert [(r.day, r.model) for r in rows] == [
        ("2026-01-03", "m"),
        ("2026-01-03", "n"),
        ("2026-01-02", "m"),
        ("2026-01-02", "n"),
        ("2026-01-01", "m"),
    ]
    assert [r.to_map()["requests"] for r in rows] == [1, 0, 3, 0, 2]
    total = together(r for r in rows if r.model == "m").to_map()
    assert total["requests"] == 6 and total["errors"] == 2
    assert total["error_codes"] == {"worker_died": 2}
    assert total["prompt_tokens"] == 30 and total["completion_tokens"] == 126
    assert total["first_s"] == 2.0 and total["tokens_per_s"] == 10.0 and total["load_s"] == 0.5
    assert [r.model for r in read(path, "2026-01-03", "n")] == ["n"]
    assert read(tmp_path / "none.sqlite") == []


async def test_what_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    usage = Usage(path)
    usage.loaded("m", 1.0)
    await usage.write()
    blocker = sqlite3.connect(path, timeout=0)
    blocker.execute("BEGIN EXCLUSIVE")
    usage.loaded("m", 1.0)
    original = sqlite3.connect
    sqlite3.connect = lambda p, timeout: original(p, timeout=0)  # type: ignore[assignment, misc]
    try:
        await usage.write()
    finally:
        sqlite3.connect = original
    blocker.rollback()
    blocker.close()
    usage.loaded("m", 1.0)
    assert (await usage.rows())[0].to_map()["loads"] == 3
    await usage.close()


async def test_writing_waits_for_a_while_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uml.supervisor.usage._WRITE_S", 0.05)
    usage = Usage(tmp_path / "r.sqlite")

    def loads() -> list[int]:
        return [row.to_map()["loads"] for row in read(tmp_path / "r.sqlite")]

    for number in (1, 2):
        usage.loaded("m", 1.0)
        assert loads() == [] or usage._timer
        await until(lambda so_many=number: loads() == [so_many])
    assert usage._timer is None
    assert not usage._new
    await usage.close()


async def used(h: House) -> dict[str, Any]:
    """What was counted of model a today."""
    found: dict[str, Any] = h.pool.status()["usage"]["a"]
    (row,) = await h.pool.usage.rows(days_ago(1), "a")
    kept = row.to_map()
    for name in ("requests", "errors", "cancelled", "completion_tokens", "loads"):
        assert kept[name] == found[name]
    return found


async def test_requests_tokens_and_times_are_counted(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"token_delay": 0.01, "slow_load": 0.2})
        await asyncio.gather(*(h.ask(a, "who", 12) for _ in range(2)))
        found = await used(h)
        assert (found["requests"], found["loads"]) == (2, 1)
        assert found["completion_tokens"] == 24 and found["prompt_tokens"] == 2
        assert found["load_s"] > 0.2 and found["first_p50_s"] > 0.1
        assert 5 < found["tokens_per_s"] < 400
        assert h.worker("a")["pieces"] == 24


async def test_errors_and_clients_that_leave_are_told_apart(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        a = h.model("a", options={"token_delay": 0.01})
        with pytest.raises(Exception, match="on command"):
            await h.ask(a, "fail")
        reader = Reader()
        leaving = asyncio.create_task(h.pool.serving.run(a, chat("x", 1000), reader))
        await until(lambda: len(reader.chunks) >= 3)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: h.worker("a")["busy"] == 0)
        found = await used(h)
        assert (found["requests"], found["errors"], found["cancelled"]) == (0, 1, 1)
        assert found["completion_tokens"] >= 3, "what was done before the client left"


async def test_a_failed_load_is_counted(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(Exception, match="no luck"):
            await h.ask(h.model("a", options={"fail_load": "no luck"}))
        found = await used(h)
        assert (found["loads"], found["load_failures"], found["errors"]) == (0, 1, 1)


# --- over HTTP ----------------------------------------------------------------------------


async def scrape(house: Served) -> dict[tuple[str, ...], float]:
    """name and label values -> value; also checks what a parser cannot."""
    status, text, headers = await house.ask("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[tuple[str, ...], float] = {}
    families = list(text_string_to_metric_families(text))
    assert len({f.name for f in families}) == len(families)
    for family in families:
        assert family.documentation and family.type != "unknown"
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found, "a sample twice"
            found[key] = sample.value
    return found


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {}, 'od"d\\name': {}}) as house:
        for _ in range(3):
            await house.chat("x", max_tokens=8)
        assert (await house.chat("fail"))[0] == 400
        await house.get("/nowhere")
        found = await scrape(house)
        assert found["uml_requests_total", "alpha", "chat", "finished"] == 3
        assert found["uml_requests_total", "alpha", "chat", "failed"] == 1
        assert found["uml_request_errors_total", "alpha", "invalid_request"] == 1
        assert found["uml_tokens_total", "alpha", "completion"] == 24
        assert found["uml_load_seconds_count", "alpha"] == 1
        assert found["uml_time_to_first_output_seconds_bucket", "alpha", "+Inf"] == 3
        assert found["uml_model_slots", "alpha"] == 4 and found["uml_workers", "ready"] == 1
        assert found["uml_http_responses_total", "/v1/chat/completions", "POST", "200"] == 3
        assert found["uml_http_responses_total", "none", "GET", "404"] == 1
        assert found["uml_events_total", "worker.ready", "info"] == 1
        assert found["process_resident_memory_bytes",] > 10 << 20
        assert found["uml_device_total_bytes", "ram"] > found["uml_device_leased_bytes", "ram"] > 0
        again = await scrape(house)
        assert again["uml_http_responses_total", "/metrics", "GET", "200"] == 1
        for key, value in found.items():
            if key[0].endswith(("_total", "_count", "_bucket")):
                assert again[key] >= value, "a counter fell"


@given(text=st.text())
def test_any_name_can_be_a_label(text: str) -> None:
    text = text.replace("\r", "").encode("utf-8", "replace").decode()
    page = Page()
    page.add("x_total", "counter", "Help.", 1, model=text)
    (family,) = text_string_to_metric_families(page.text())
    assert family.samples[0].labels == {"model": text}


async def test_stats_by_day_and_model(tmp_path: Path) -> None:
    async with served(tmp_path, files={"alpha": {}, "beta": {}}) as house:
        await house.chat("x", max_tokens=3)
        await house.chat("x", "beta", max_tokens=2)
        status, found = await house.get("/stats")
        assert status == 200
        assert [(d["model"], d["requests"]) for d in found["days"]] == [("alpha", 1), ("beta", 1)]
        assert found["days"][0]["day"] == days_ago(1)
        assert found["total"]["completion_tokens"] == 5
        status, found = await house.get("/stats?model=beta&days=1")
        assert [d["model"] for d in found["days"]] == ["beta"]
        assert (await house.get("/stats?days=none"))[0] == 400
        assert (await house.get("/stats?model=nobody"))[0] == 404
        assert (await house.get("/status"))[1]["usage"]["alpha"]["requests"] == 1
