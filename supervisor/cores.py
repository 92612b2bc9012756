"""How cores are divided among the models that compute: pure.

A loaded model that is idle holds none. Those that answer or load share what there is, at least one
each: so no more threads compute than there are cores, unless more models than that compute at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def divide(cores: int, limits: Sequence[int | None]) -> list[int]:
    """Cores for each, in equal parts. limits: how many each can use, None = any number; what one
    cannot use goes to the others, what does not divide to the first ones."""
    shares = [0] * len(limits)
    left, open_ = max(cores, len(limits)), len(limits)
    # Who wants least first: what it leaves is divided among the rest.
    for i in sorted(range(len(limits)), key=lambda i: (limits[i] or left, -i)):
        fair = left // open_
        shares[i] = max(1, min(fair, limits[i] or left))
        left, open_ = left - shares[i], open_ - 1
    return shares
