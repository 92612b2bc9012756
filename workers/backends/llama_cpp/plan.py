"""How many prompt tokens a step may take, and whose: pure.

A step mixes one token of every running answer with a chunk of prompts. Everybody waits for the
chunk, so it is bounded by the time it takes, not by a number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

#: How much longer a step may take for prompts' sake, when it holds up answers and when nobody.
SHARED_S, ALONE_S = 0.1, 0.4
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

    def chunk(self, answering: int, most: int) -> int:
        """Prompt tokens for the next step, at most `most`; answering: running answers."""
        target_s = SHARED_S if answering else ALONE_S
        return max(0, min(most, max(_LEAST, int(self.rate * target_s))))


def share(budget: int, waiting: Sequence[int]) -> list[int]:
    """Divide `budget` tokens among prompts with `waiting` tokens left, oldest first.

    The oldest gets at least half, so that it surely ends; the rest goes to whoever has least left,
    so that a short question does not wait for a long document.
    """
    given = [0] * len(waiting)
    if not waiting or budget <= 0:
        return given
    given[0] = min(waiting[0], -(-budget // 2))
    left = budget - given[0]
    for i in sorted(range(len(waiting)), key=lambda i: waiting[i]):
        more = min(left, waiting[i] - given[i])
        given[i] += more
        left -= more
    return given
