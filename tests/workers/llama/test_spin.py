"""Idle threads of OpenMP spin long while the cores are ours, and hardly while others want them."""

from __future__ import annotations

import ctypes
import os
import time

from tests.integration.serving import until
from uml.workers.backends.llama_cpp import spin
from uml.workers.backends.llama_cpp.spin import Crowd, Spin

#: Threads of a team, with the one that starts it.
_TEAM = len(os.sched_getaffinity(0)) + 1


def test_a_thread_that_waits_for_cores_is_in_a_crowd_until_it_ran_calmly_for_a_while() -> None:
    crowd = Crowd()
    assert not crowd.observe(1.0, 0.05)
    assert crowd.observe(1.0, 0.4)
    assert crowd.observe(1.5, 0.02)
    assert crowd.observe(1.0, 0.1), "not calm: it begins again"
    assert crowd.observe(1.5, 0.02)
    assert not crowd.observe(1.5, 0.02)


def test_no_work_is_no_crowd() -> None:
    assert not Crowd().observe(0.0, 0.0)


def test_own_times_are_of_this_thread_and_grow_as_it_works() -> None:
    before, end = spin.own_times(), time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    after = spin.own_times()
    if before is None or after is None:
        assert not os.path.exists("/proc/thread-self/schedstat")
    else:
        assert 0.04 < after[0] - before[0] < 0.5


def test_a_team_stands_while_there_is_a_crowd_and_no_thread_is_left_of_it() -> None:
    ctypes.CDLL("libgomp.so.1")
    seen = (1.0, 0.0)
    it, now = Spin(lambda: seen), 100.0

    def look(ran: float, waited: float) -> None:
        nonlocal seen, now
        seen, now = (seen[0] + ran, seen[1] + waited), now + 1.0
        it.look(now)

    alone = _tasks()
    look(1.0, 0.01)
    assert _tasks() == alone
    look(0.6, 0.4)
    until(lambda: _tasks() == alone + _TEAM)
    look(0.6, 0.4)
    assert _tasks() == alone + _TEAM, "one is enough"
    look(3.0, 0.01)
    until(lambda: _tasks() == alone)


def test_where_the_kernel_does_not_tell_it_spins_shortly() -> None:
    ctypes.CDLL("libgomp.so.1")
    told: list[spin.Times | None] = [None, None, (1.0, 0.0), (2.0, 0.0)]
    it, alone = Spin(lambda: told.pop(0)), _tasks()
    it.look(10.0)
    until(lambda: _tasks() == alone + _TEAM)
    it.look(11.0)
    it.look(12.0)
    until(lambda: _tasks() == alone)


def test_it_looks_now_and_then_only() -> None:
    ctypes.CDLL("libgomp.so.1")
    looked = []

    def times() -> spin.Times:
        looked.append(1)
        return float(len(looked)), 0.0

    it = Spin(times)
    for i in range(100):
        it.look(50.0 + i * 0.001)
    assert len(looked) == 2


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))
