"""How many prompt tokens a step may take, and whose: pure.

A step mixes one token of every running answer with a chunk of prompts. Everybody waits for the
chunk, so it is bounded by the time it takes, not by a number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

#: How much longer a step may take for prompts' sake, when it holds up answers and when nobody. In
#: between it is the more, the larger the part is of those who wait for their first word: each step
#: of the answers holds them all up. Measured, 32 requests at once on 2 cores: half of them have
#: their first word after 2.7 s, and after 3.1 s where that part does not count.
SHARED_S, ALONE_S = 0.15, 0.4
#: A chunk is never smaller: progress, even on a machine that is far too slow.
_LEAST = 8


class Pace:
    """Measured speed of prompt processing, in tokens per second."""

    def __init__(self, rate: float = 200.0) -> None:
        self.rate = rate

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`. Small steps say little of prompts."""
        if rows >= _LEAST and seconds > 0:
            # Weighed by size, so that one small odd chunk does not spoil what large ones showed.
            weight = min(0.5, rows / 128)
            self.rate += weight * (rows / seconds - self.rate)

    def chunk(self, answering: int, waiting: int) -> int:
        """Prompt tokens for the next step; answering: running answers; waiting: prompts."""
        part = waiting / max(1, answering + waiting)
        target_s = SHARED_S + (ALONE_S - SHARED_S) * part
        return max(_LEAST, int(self.rate * target_s))


def share(budget: int, waiting: Sequence[int], most: int, turn: int = 0) -> list[int]:
    """Divide about `budget` tokens, and at most `most`, among prompts with `waiting` tokens left,
    oldest first.

    By turns it goes to the oldest, so that it surely ends, and to whoever has least left, so that
    a short question does not wait for a long document; what one leaves the next gets. Whole prompts
    as far as possible, not a little of each: rows of columns with different numbers of rows are
    computed one group after the other, and small groups are as slow as larger ones. So who comes
    first gets an equal part of what it has left, half as much again as the budget at most, and
    others only all they need.
    """
    given, left = [0] * len(waiting), min(budget, most)
    order = sorted(range(len(waiting)), key=lambda i: (waiting[i], i))
    if turn % 2 == 0:
        order.sort(key=bool)  # 0 is the oldest
    for i in order:
        if left <= 0:
            break
        if waiting[i] <= left:
            given[i] = waiting[i]
        elif not any(given):
            parts = max(1, round(waiting[i] / left))
            given[i] = min(most, -(-waiting[i] // parts))
        left -= given[i]
    return given
