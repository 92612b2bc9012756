"""Which cells of the unified KV pool are taken, counted exactly without asking the library: pure.

A cell may belong to several sequences (a copied prefix is shared, not copied) and is free again
when the last of them lets go. A sequence is a list of spans with a reference count each.
"""

from __future__ import annotations


class _Span:
    __slots__ = ("length", "owners")

    def __init__(self, length: int, owners: int = 1) -> None:
        self.length, self.owners = length, owners


class Cells:
    """`total` cells, sequences numbered 0.. ."""

    def __init__(self, total: int, sequences: int) -> None:
        self.total, self.used = total, 0
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

    def truncate(self, sequence: int, count: int) -> None:
        """Keep the first `count` cells."""
        self._cut(sequence, count)
        spans, kept = self._spans[sequence], 0
        for i, span in enumerate(spans):
            if kept == count:
                for gone in spans[i:]:
                    gone.owners -= 1
                    if not gone.owners:
                        self.used -= gone.length
                del spans[i:]
                break
            kept += span.length
        self._lengths[sequence] = min(count, self._lengths[sequence])

    def clear(self) -> None:
        self.used = 0
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
    questions as `Cells` answers, but nothing is ever shared."""

    def __init__(self, column: int, sequences: int) -> None:
        self.total, self.used = column * sequences, 0
        self.column = column
        self._lengths = [0] * sequences

    @property
    def free(self) -> int:
        return self.total - self.used

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def append(self, sequence: int, count: int) -> None:
        self._lengths[sequence] += count
        self.used += count

    def truncate(self, sequence: int, count: int) -> None:
        """Keep the first `count` cells."""
        gone = max(0, self._lengths[sequence] - count)
        self._lengths[sequence] -= gone
        self.used -= gone

    def clear(self) -> None:
        self.used = 0
        self._lengths = [0] * len(self._lengths)
