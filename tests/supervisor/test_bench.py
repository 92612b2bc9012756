"""Figures of the benchmark: ratios pair by pair, percentiles, and a run against a real server."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.served import served
from uml.protocol.errors import Unavailable
from uml.supervisor.bench import Server, change, client, compare, question, stream, thrash
from uml.supervisor.figures import percentile, ratio


def test_ratio_is_taken_pair_by_pair_so_that_drift_cancels() -> None:
    ours, theirs = [10.0, 20.0, 40.0], [5.0, 10.0, 20.0]
    found = ratio(ours, theirs)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20))
def test_interval_holds_the_median(values: list[float]) -> None:
    found = ratio(values, [1.0] * len(values))
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_percentile_interpolates_and_nothing_is_nan() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5 and percentile([5], 99) == 5
    assert math.isnan(percentile([], 50))


def test_prompts_never_begin_alike() -> None:
    assert len({question()[:16] for _ in range(100)}) == 100


async def test_compare_measures_each_server_in_every_round(tmp_path: Path) -> None:
    models = {"alpha": {"options": {"slots": 4, "token_delay": 0.02}}}
    async with served(tmp_path, models=models) as s:
        servers = [Server(name, s.url, "alpha") for name in ("one", "two")]
        said: list[str] = []
        found = await compare(servers, [1, 2], 2, 8, said.append)
        assert len(said) == 8
        for by_streams in found.values():
            assert [len(by_streams[n]) for n in (1, 2)] == [2, 2]
            assert all(r["tokens_per_s"] > 0 for rounds in by_streams.values() for r in rounds)
            # The longest: what a busy machine is late for comes together.
            assert by_streams[1][0]["gap_max_s"] >= 0.01


async def test_compare_stops_at_a_server_that_fails(tmp_path: Path) -> None:
    async with served(tmp_path) as s:
        with pytest.raises(Unavailable, match="bad: nope: 404"):
            await compare([Server("bad", s.url, "nope")], [1], 1, 4, lambda _: None)


async def _answering(*heads_and_bodies: bytes) -> tuple[asyncio.Server, str, list[int]]:
    """A server that gives each connection the next of these, and closes it."""
    left, asked = list(heads_and_bodies), [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        asked[0] += 1
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, f"http://127.0.0.1:{port}", asked


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
_TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
_USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)


async def test_stream_that_breaks_off_counts_as_lost_and_is_not_repeated() -> None:
    server, url, asked = await _answering(_HEAD + _TOKEN)
    async with server, client() as session:
        found = await stream(session, Server("x", url, "m"), 2)
    assert found.error == "the stream broke off" and asked == [1]


async def test_connection_closed_before_an_answer_is_asked_again() -> None:
    whole = _HEAD + _TOKEN + _TOKEN + _USAGE + b"data: [DONE]\n\n"
    server, url, asked = await _answering(b"", whole)
    async with server, client() as session:
        found = await stream(session, Server("x", url, "m"), 2)
    assert not found.error and found.text == "aa" and len(found.gaps_s) == 1 and asked == [2]
    assert (found.tokens, found.prompt_tokens, found.cached_tokens) == (2, 9, 4)


async def test_thrash_asks_for_both_and_counts_who_waited(tmp_path: Path) -> None:
    files = {name: {"options": {"slots": 4}} for name in ("alpha", "beta")}
    async with served(tmp_path, files=files, max_loaded=1) as s, client() as session:
        found = await thrash(session, Server("x", s.url, "alpha"), "beta", seconds=1.0, clients=4)
    assert found["lost"] == 0 and found["answers_a"] >= 2 and found["answers_b"] >= 2
    assert found["wait_b_max_s"] >= found["wait_b_p50_s"] > 0


async def test_change_is_dearer_than_asking_what_is_loaded(tmp_path: Path) -> None:
    files = {name: {"options": {"slots": 4, "slow_load": 0.2}} for name in ("alpha", "beta")}
    async with served(tmp_path, files=files, max_loaded=1) as s, client() as session:
        await change(session, Server("x", s.url, "alpha"))
        found = await change(session, Server("x", s.url, "beta"))
    assert found["first_s"] > 0.2 and found["per_loaded"] > 1
