"""What can be said of measured figures: medians and ratios, with their 95 % interval. Pure.

Intervals are percentile bootstraps of the median: no assumption about the shape of what was
measured, which on a shared machine has a long tail. Source: Efron and Tibshirani, An Introduction
to the Bootstrap, chapter 13.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A median and where it lies with 95 % confidence."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the nearest ranks; nan of nothing. share: 0 to 100."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * share / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def middle(values: Sequence[float]) -> Interval:
    """The median of `values`; nan of nothing."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return Interval(math.nan, math.nan, math.nan)
    chance = random.Random(0)
    medians = sorted(
        statistics.median(chance.choices(known, k=len(known))) for _ in range(_RESAMPLES)
    )
    cut = _RESAMPLES * 25 // 1000
    return Interval(statistics.median(known), medians[cut - 1], medians[-cut])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """ours / theirs, pair by pair: what drifts over a run drifts for both."""
    return middle([a / b for a, b in zip(ours, theirs, strict=True) if b])
