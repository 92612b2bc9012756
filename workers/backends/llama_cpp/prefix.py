"""Common beginnings of token lists, and the KV states of conversations kept outside the pool: pure.

Idle cells in the pool slow every step, so what nobody uses is parked here as opaque bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning, by bisection over slices: comparing slices is fast."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False)
class Parked:
    """tokens: what `state` (a buffer of `size` bytes) holds the KV of. path: the file it is mapped
    from; None = memory of this process."""

    tokens: list[int]
    state: Any
    size: int
    path: Path | None = None


class Shelf:
    """Parked states, at most `limit` bytes of them; the least recently used go first.

    known: what is there from the beginning. dropped: told of each that had to go.
    """

    def __init__(
        self,
        limit: int,
        known: Iterable[Parked] = (),
        dropped: Callable[[Parked], None] = lambda _: None,
    ) -> None:
        self.limit, self.bytes = limit, 0
        self._dropped = dropped
        self._items: list[Parked] = []  # least recently used first
        for item in known:
            self.put(item)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def private_bytes(self) -> int:
        """What this process holds of them; those in files are the kernel's to keep."""
        return sum(item.size for item in self._items if item.path is None)

    def fits(self, size: int) -> bool:
        return 0 < size <= self.limit

    def covers(self, tokens: list[int]) -> bool:
        """Whether some state begins with all of `tokens`: it need not be parked again."""
        return any(item.tokens[: len(tokens)] == tokens for item in self._items)

    def put(self, item: Parked) -> None:
        """Keep it, and drop what it continues and what no longer has room."""
        for old in [o for o in self._items if item.tokens[: len(o.tokens)] == o.tokens]:
            self.drop(old)
        self._items.append(item)
        self.bytes += item.size
        while self.bytes > self.limit:
            self.drop(self._items[0])

    def best(self, tokens: list[int]) -> tuple[Parked | None, int]:
        """The state that shares the longest beginning with `tokens`, and how long that is."""
        found, length = None, 0
        for item in self._items:
            if item.tokens[:1] == tokens[:1] and (n := common(item.tokens, tokens)) > length:
                found, length = item, n
        return found, length

    def touch(self, item: Parked) -> None:
        """It was used; nothing if it had to go meanwhile."""
        if item in self._items:
            self._items.remove(item)
            self._items.append(item)

    def drop(self, item: Parked) -> None:
        self._items.remove(item)
        self.bytes -= item.size
        self._dropped(item)
