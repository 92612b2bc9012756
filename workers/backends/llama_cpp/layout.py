"""How the KV cells are divided among the sequences: pure.

Attention of every row looks at all the cells its sequence could have, its own or not. In one pool
that everybody shares it grows with what all of them together hold; in columns, one per sequence,
only with the longest one (measured on 2 cores, SmolLM2: 174 and 197 tokens/s at 4 sequences, 195
and 270 at 32). But a column holds no more than its share. So cells lie in columns where all who are
here and wait fit into them, and in one pool where they do not. Making the context anew for another
division takes tens of milliseconds, and the running answers move along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: llama.cpp counts cells in steps of this.
PAD = 256
#: A pool smaller than this is not divided.
_LEAST_CELLS = 2048
#: Cells an answer is expected to need beyond what it has, when columns are chosen for it.
_AHEAD = 256
#: Columns of the beginning, and how many: enough for a few short answers.
_FIRST_COLUMN, _FIRST_COLUMNS = 512, 8
#: From one pool back to columns only after so long: the move costs everybody time.
SETTLED_S = 5.0


@dataclass(frozen=True)
class Layout:
    """cells: in all. sequences: at once. column: cells of each; 0 = all share all."""

    cells: int
    sequences: int
    column: int = 0

    @property
    def most(self) -> int:
        """Cells that one sequence may have."""
        return self.column or self.cells


@dataclass(frozen=True)
class Need:
    """Of a sequence: cells it has to have for its next step, and at the very most."""

    now: int
    most: int

    @property
    def soon(self) -> int:
        return min(self.now + _AHEAD, self.most)


class Layouts:
    """What a pool of `cells` cells can be divided into for at most `slots` sequences. elastic:
    columns are possible at all."""

    def __init__(self, cells: int, slots: int, *, elastic: bool) -> None:
        self.pool = Layout(cells, slots)
        self.columns: list[Layout] = []
        if elastic and cells >= _LEAST_CELLS:
            counts = sorted({1 << k for k in range(slots.bit_length()) if 1 << k < slots} | {slots})
            divided = [(n, cells // n // PAD * PAD) for n in counts]
            self.columns = [Layout(n * column, n, column) for n, column in divided if column]

    def first(self) -> Layout:
        """Before anything is known of the load. Not all cells: they are zeroed when they are made,
        which every swap waits for, and who asks little never needs the others (measured, SmolLM2:
        16 ms for 16384 cells, several hundred where a virtual machine's host took the memory back
        meanwhile; a quarter of both for these)."""
        if not self.columns:
            return self.pool
        count = min(_FIRST_COLUMNS, self.pool.sequences)
        few = Layout(count * _FIRST_COLUMN, count, _FIRST_COLUMN)
        return few if few.cells < self.pool.cells else self.columns[-1]

    def choose(self, now: Layout, needs: list[Need], *, settled: bool = True) -> Layout:
        """For those who compute, and who wait as far as slots go. What is stays as long as it
        serves, then as many columns as are long enough; settled: it was so for a while."""
        if not self.columns or not needs:
            return now
        if _serves(now, [need.now for need in needs]) and (now.column or not settled):
            return now
        for one in reversed(self.columns):
            if _serves(one, [need.soon for need in needs]):
                return one
        return self.pool


def _serves(layout: Layout, needs: Iterable[int]) -> bool:
    needs = list(needs)
    if len(needs) > layout.sequences:
        return False
    return not layout.column or max(needs) <= layout.column
