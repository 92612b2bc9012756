"""Which cells of the unified KV pool are taken, counted exactly without asking the library: pure.

A cell may belong to several sequences (a copied prefix is shared, not copied) and is free again
when the last of them lets go, or dead until all dead ones are freed at once. A sequence is a list
of spans with a reference count each.
"""

from __future__ import annotations

from itertools import takewhile


class _Span:
    __slots__ = ("length", "owners")

    def __init__(self, length: int, owners: int = 1) -> None:
        self.length, self.owners = length, owners


class Cells:
    """`total` cells, sequences numbered 0.. . buries: cells that nobody has any more are dead, and
    `used` all the same until `free_dead`."""

    def __init__(self, total: int, sequences: int, *, buries: bool = False) -> None:
        self.total, self.used, self.dead = total, 0, 0
        self.buries = buries
        self._spans: list[list[_Span]] = [[] for _ in range(sequences)]
        self._lengths = [0] * sequences

    @property
    def free(self) -> int:
        return self.total - self.used

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def append(self, sequence: int, count: int) -> None:
        spans = self._spans[sequence]
        if spans and spans[-1].owners == 1:
            spans[-1].length += count
        elif count:
            spans.append(_Span(count))
        self._lengths[sequence] += count
        self.used += count

    def common(self, a: int, b: int) -> int:
        """Cells that both have: the first ones of each."""
        pairs = zip(self._spans[a], self._spans[b], strict=False)
        return sum(x.length for x, _ in takewhile(lambda pair: pair[0] is pair[1], pairs))

    def copy(self, source: int, target: int, count: int) -> None:
        """`target`, which is empty, takes part in the first `count` cells of `source`."""
        self._cut(source, count)
        left, shared = count, []
        for span in self._spans[source]:
            if not left:
                break
            span.owners += 1
            left -= span.length
            shared.append(span)
        self._spans[target] = shared
        self._lengths[target] = count

    def truncate(self, sequence: int, count: int) -> int | None:
        """Keep the first `count` cells. Gives the position of the first one that nobody has any
        more: from there on nobody has any, as only beginnings are shared. None: somebody has all.
        """
        self._cut(sequence, count)
        spans, at, left = self._spans[sequence], 0, None
        for i, span in enumerate(spans):
            if at >= count:
                for gone in spans[i:]:
                    gone.owners -= 1
                    if not gone.owners:
                        left = at if left is None else left
                        self._lose(gone.length)
                    at += gone.length
                del spans[i:]
                break
            at += span.length
        self._lengths[sequence] = min(count, self._lengths[sequence])
        return left

    def free_dead(self) -> None:
        self.used, self.dead = self.used - self.dead, 0

    def _lose(self, count: int) -> None:
        if self.buries:
            self.dead += count
        else:
            self.used -= count

    def clear(self) -> None:
        self.used = self.dead = 0
        self._lengths = [0] * len(self._lengths)
        self._spans = [[] for _ in self._spans]

    def _cut(self, sequence: int, at: int) -> None:
        """See that a span ends at `at`, in every sequence that shares the span there."""
        spans, start = self._spans[sequence], 0
        for span in spans:
            if start < at < start + span.length:
                rest = _Span(start + span.length - at, span.owners)
                span.length = at - start
                for other in self._spans:
                    for i, mine in enumerate(other):
                        if mine is span:
                            other.insert(i + 1, rest)
                            break
                return
            start += span.length


class Columns:
    """Cells of a cache in which each of `sequences` has `column` cells of its own. The same
    questions as `Cells` answers, but nothing is ever shared, or dead."""

    buries, dead = False, 0

    def __init__(self, column: int, sequences: int) -> None:
        self.total, self.used = column * sequences, 0
        self._lengths = [0] * sequences

    @property
    def free(self) -> int:
        return self.total - self.used

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def common(self, a: int, b: int) -> int:
        return self._lengths[a] if a == b else 0

    def append(self, sequence: int, count: int) -> None:
        self._lengths[sequence] += count
        self.used += count

    def truncate(self, sequence: int, count: int) -> None:
        """Keep the first `count` cells."""
        gone = max(0, self._lengths[sequence] - count)
        self._lengths[sequence] -= gone
        self.used -= gone

    def free_dead(self) -> None:
        """There are none."""

    def clear(self) -> None:
        self.used = 0
        self._lengths = [0] * len(self._lengths)
