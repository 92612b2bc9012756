from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from uml.supervisor.patience import Patience

#: A loop that runs looks again within these.
steps = st.lists(st.floats(0.001, 0.5), min_size=1, max_size=20)


@given(steps)
def test_while_nobody_is_stopped_it_is_a_stopwatch(looks: list[float]) -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    for look in looks:
        now[0] += look
        waited = patience.waited()
    assert waited == approx(sum(looks))


@given(steps, st.floats(10, 1e6))
def test_time_in_which_the_process_was_stopped_does_not_count(
    looks: list[float], stopped_s: float
) -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    for at, look in enumerate(looks):
        now[0] += look + (stopped_s if at == len(looks) // 2 else 0.0)
        waited = patience.waited()
    assert waited <= sum(looks) + 0.5
