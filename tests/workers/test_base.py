"""Jobs, the outbox and the default threads of a backend, without a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.workshop import wait_until
from uml.protocol import frames, messages
from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat
from uml.workers import base


class Wire:
    """Takes an outbox's frames; every one is held to the limit by the decoder."""

    def __init__(self) -> None:
        self._decoder = frames.Decoder()
        self.sent: list[Any] = []
        self.ended = threading.Semaphore(0)
        self.outbox = base.Outbox(self._take)

    def _take(self, frame: bytes) -> None:
        self.sent += [messages.parse(m) for m in self._decoder.feed(frame)]
        if isinstance(self.sent[-1], (messages.Done, messages.Error)):
            self.ended.release()

    def job(self, id: str = "r1", text: str = "", window: int = 1000) -> base.Job:
        task = Chat(messages=[{"role": "user", "content": text}])
        return base.Job(id, task, self.outbox, window, lambda _: None)

    def end(self) -> Any:
        assert self.ended.acquire(timeout=5)
        return next(m for m in reversed(self.sent) if not isinstance(m, messages.Chunks))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_flush_sends_one_frame_for_all_jobs_and_the_ends_after_it(wire: Wire) -> None:
    a, b = wire.job("a"), wire.job("b")
    a.emit(0, "x")
    a.finish(["stop"])
    b.emit(1, b"y")
    assert wire.sent == []
    wire.outbox.flush()
    assert wire.sent == [
        messages.Chunks([["a", 0, "x"], ["b", 1, b"y"]]),
        messages.Done("a", ["stop"]),
    ]
    wire.outbox.flush()
    assert len(wire.sent) == 2 and wire.outbox.flushed == 1


def test_output_too_large_for_a_frame_leaves_in_several_in_order(wire: Wire) -> None:
    job = wire.job(window=1 << 40)
    size = base.MAX_DELTA_BYTES // 2
    for index in range(12):
        job.emit(index, bytes(size))
    job.finish(["stop"])
    wire.outbox.flush()
    *chunks, done = wire.sent
    assert [i for c in chunks for _, i, _ in c.items] == list(range(12))
    assert isinstance(done, messages.Done)


@pytest.mark.parametrize(
    "delta",
    ["\ud800", {"text": "\ud800"}, {"x": object()}, {"x": 2**70}, bytes(base.MAX_DELTA_BYTES + 1)],
    ids=["surrogate", "surrogate-in-map", "object", "integer", "size"],
)
def test_delta_that_cannot_be_sent_fails_its_own_job_only(wire: Wire, delta: Any) -> None:
    bad, good = wire.job("bad"), wire.job("good")
    bad.emit(0, delta)
    good.emit(0, "fine")
    bad.finish(["stop"])
    good.finish(["stop"])
    wire.outbox.flush()
    chunks, error, done = wire.sent
    assert chunks.items == [["good", 0, "fine"]] and done == messages.Done("good", ["stop"])
    assert error.id == "bad" and "cannot be sent" in error.error["message"]
    assert bad.cancelled and not good.cancelled


def test_result_that_cannot_be_sent_still_ends_the_request(wire: Wire) -> None:
    wire.job().finish(["stop"], result={"x": object()})
    wire.outbox.flush()
    (error,) = wire.sent
    assert error.id == "r1" and "cannot be sent" in error.error["message"]


def test_job_ends_once_whoever_comes_first(wire: Wire) -> None:
    for _ in range(50):
        job, start = wire.job(), threading.Barrier(4)

        def end(job: base.Job = job, start: threading.Barrier = start) -> None:
            start.wait()
            job.finish(["stop"])

        threads = [threading.Thread(target=end) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        job.fail(BadRequest("late"))
        job.emit(0, "late")
    wire.outbox.flush()
    assert wire.sent == [messages.Done("r1", ["stop"])] * 50


@given(st.lists(st.text(max_size=20) | st.integers(0, 30), max_size=30), st.integers(1, 60))
def test_job_is_blocked_exactly_while_its_window_is_used_up(
    moves: list[str | int], window: int
) -> None:
    job, owed = Wire().job(window=window), 0
    for move in moves:
        if isinstance(move, str):
            job.emit(0, move)
            owed += len(move.encode())
        else:
            job.credit(move)
            owed -= move
        assert job.blocked == (owed >= window)


class Talker(base.Backend):
    """A generator per task; what it does is the request's text."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire.outbox, lambda *_, **__: None)
        self.meeting = threading.Barrier(2)
        self.go = threading.Event()
        self.working = threading.Semaphore(0)
        self.closed: list[str] = []

    def chat(self, job: base.Job) -> Iterator[base.Delta]:
        text = job.task.messages[0]["content"]
        try:
            if text == "meet":
                self.meeting.wait(5)
            elif text == "wait":
                self.working.release()
                self.go.wait(5)
            elif text == "break":
                raise OSError("broken")
            elif text == "refuse":
                raise BadRequest("no")
            for n in range(1000):
                yield f"{n} "
                if text != "forever":
                    return {"said": n}
        finally:
            self.closed.append(job.id)


@pytest.fixture
def talker(wire: Wire) -> Iterator[Talker]:
    backend = Talker(wire)
    yield backend
    backend.go.set()
    if backend._threads:
        backend._threads.shutdown()


def test_default_threads_serve_as_many_at_once_as_there_are_slots(
    wire: Wire, talker: Talker
) -> None:
    talker.slots = 2
    talker.submit(wire.job("a", "meet"))
    talker.submit(wire.job("b", "meet"))
    assert isinstance(wire.end(), messages.Done) and isinstance(wire.end(), messages.Done)


def test_generators_return_value_is_the_result(wire: Wire, talker: Talker) -> None:
    talker.submit(wire.job())
    done = wire.end()
    assert done.result == {"said": 0} and done.finish == ["stop"]
    assert wire.sent[0] == messages.Chunks([["r1", 0, "0 "]])


def test_queued_job_is_cancelled_without_waiting_for_the_running_one(
    wire: Wire, talker: Talker
) -> None:
    first, second = wire.job("first", "wait"), wire.job("second")
    talker.submit(first)
    assert talker.working.acquire(timeout=5)
    talker.submit(second)
    assert talker.stats()[:2] == (1, 1)
    second.cancel()
    talker.cancel(second)
    assert wire.end() == messages.Done("second", ["cancelled"])
    assert talker.stats()[:2] == (1, 0)


def test_running_job_notices_a_cancel_also_while_it_waits_for_credit(
    wire: Wire, talker: Talker
) -> None:
    job = wire.job("r1", "forever", window=1)
    talker.submit(job)
    wait_until(lambda: job.blocked)
    job.cancel()
    talker.cancel(job)
    assert wire.end().finish == ["cancelled"] and talker.closed == ["r1"]


def test_generator_waits_for_credit(wire: Wire, talker: Talker) -> None:
    job = wire.job("r1", "forever", window=1)
    talker.submit(job)
    for said in range(1, 4):
        wait_until(lambda n=said: len(wire.sent) == n)
        assert job.blocked and talker.stats()[0] == 1
        job.credit(2)
    job.credit(1 << 20)
    assert wire.end().finish == ["stop"]
    assert "".join(d for m in wire.sent[:-1] for _, _, d in m.items).split()[-1] == "999"


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [("break", "internal_error", "OSError: broken"), ("refuse", "invalid_request", "no")],
)
def test_generator_that_raises_fails_its_request(
    wire: Wire, talker: Talker, text: str, code: str, says: str
) -> None:
    talker.submit(wire.job("r1", text))
    error = wire.end()
    assert (error.error["code"], error.error["message"]) == (code, says)
    assert talker.closed == ["r1"]
