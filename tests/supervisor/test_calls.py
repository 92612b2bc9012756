from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.supervisor.house import until
from uml.protocol.tasks import Complete
from uml.supervisor.calls import Calls
from uml.supervisor.patience import Patience


class Deaf:
    """A worker that confirms nothing."""

    cancel_s = 0.6

    def send(self, message: Any) -> None:
        pass


def cancelled() -> tuple[Calls, list[Any]]:
    given_up: list[Any] = []
    calls = Calls(given_up.append)
    sink: Any = None
    worker: Any = Deaf()
    calls.cancel(calls.start(worker, Complete("a"), sink, lambda: None))
    return calls, given_up


async def test_worker_that_does_not_honour_a_cancel_in_its_time_is_given_up() -> None:
    _, given_up = cancelled()
    await until(lambda: given_up)


async def test_time_in_which_the_supervisor_was_stopped_is_not_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are stopped for a minute, and go on together."""
    clock = iter([0.0, 0.0, 60.0, 60.0, 60.0])
    monkeypatch.setattr(
        "uml.supervisor.calls.Patience", lambda: Patience(lambda: next(clock, 60.0))
    )
    calls, given_up = cancelled()
    await asyncio.sleep(Deaf.cancel_s)
    assert len(calls) == 1 and not given_up
    for call in list(calls._calls.values()):
        calls.on_error(call.id, RuntimeError("confirmed"))  # type: ignore[arg-type]
    assert not len(calls)
