"""What the figures have to show, and whether they do: a bar is met when the interval reaches it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.records import Record, paired
from uml.supervisor.figures import Interval, middle, ratio

NP8, NP32 = "llama-server -np 8", "llama-server -np 32"
ROUTER, STANDBY, BARE = "llama-server router", "uml with a standby", "bare loop"


@dataclass(frozen=True)
class Bar:
    """theirs: the server ours is divided by; "" for a figure that stands alone."""

    section: str
    case: str
    figure: str
    theirs: str
    at_least: float | None = None
    at_most: float | None = None
    ours: str = "uml"
    scale: float = 1.0
    unit: str = ""

    def found(self, records: Sequence[Record]) -> Interval | None:
        """None when it was not measured."""
        fitting = [r for r in records if (r.section, r.case) == (self.section, self.case)]
        if self.theirs:
            mine, other = paired(fitting, self.ours, self.theirs, self.figure)
            return ratio(mine, other) if mine else None
        values = [r.figures[self.figure] * self.scale for r in fitting if r.server == self.ours]
        return middle(values) if values else None

    def met(self, found: Interval) -> bool:
        low = self.at_least is None or found.high >= self.at_least - 0.005
        return low and (self.at_most is None or found.low <= self.at_most + 0.005)

    def __str__(self) -> str:
        bound = f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"
        against = f"x {self.theirs}" if self.theirs else self.unit
        who = "" if self.ours == "uml" else f" ({self.ours})"
        return f"{TITLES[self.figure]}, {self.case}{who}: {bound}{against}"


TITLES = {
    "tokens_per_s": "tokens/s",
    "first_p50_s": "first token p50",
    "first_p99_s": "first token p99",
    "gap_p50_s": "gap p50",
    "gap_p99_s": "gap p99",
    "gap_max_s": "longest gap",
    "s_per_token": "time per token",
    "long_first_s": "first token of the long prompt",
    "lost": "lost",
    "first_s": "first token after a change",
    "loaded_first_s": "first token when loaded",
    "per_loaded": "first token, change / loaded",
    "whole_per_loaded": "8 tokens, change / loaded",
    "release_p50_s": "kill to memory seen back, p50",
    "release_p99_s": "p99",
    "verified": "receipts verified",
    "receipts": "receipts",
    "answers_per_s": "answers/s",
    "wait_a_p50_s": "wait for A p50",
    "wait_a_max_s": "max",
    "wait_b_p50_s": "wait for B p50",
    "wait_b_max_s": "longest wait for B",
    "prefilled_per_new": "prefilled / new tokens",
    "prefilled_per_new_after_the_first": "after the first turn",
    "system_computed_times": "system prompt computed, times",
    "alike": "first 16 tokens as alone",
    "total_us": "CPU per token, supervisor and worker",
    "supervisor_us": "supervisor",
    "worker_us": "worker",
    "p50_s": "end to end p50",
    "p99_s": "p99",
    "rss_mb": "supervisor's memory",
    "rss_before_mb": "before",
    "supervisor_empty_mb": "supervisor, nothing loaded",
    "supervisor_mb": "supervisor",
    "worker_mb": "worker or server",
    "rtf": "real-time factor",
    "first_sound_s": "first sound",
    "whole_s": "whole answer",
    "first_per_sentence": "first sound / first sentence alone",
}

BARS = [
    *(
        Bar("streams", f"{n} streams", "tokens_per_s", theirs, at_least=bound)
        for n in (1, 4, 8)
        for theirs, bound in ((NP8, 1.0), (BARE, 0.97))
    ),
    *(
        Bar("crowd", "32 streams", "tokens_per_s", theirs, at_least=bound)
        for theirs, bound in ((NP8, 1.0), (NP32, 1.0), (BARE, 0.97))
    ),
    Bar("streams", "1 streams", "first_p50_s", NP8, at_most=1.0),
    Bar("crowd", "32 streams", "first_p50_s", NP8, at_most=0.5),
    Bar("crowd", "32 streams", "lost", "", at_most=0),
    Bar("long-prompt", "1,500 tokens", "gap_p99_s", NP8, at_most=0.5),
    Bar("chats", "10 turns", "prefilled_per_new", "", at_most=1.1),
    Bar("chats", "8 chats", "system_computed_times", "", at_most=1.05),
    Bar("swap", "A to B", "first_s", ROUTER, at_most=0.6),
    # 0.4 of what llama-swap took on such a machine, where it cannot be built.
    Bar("swap", "A to B", "first_s", "", at_most=0.73, unit=" s (0.4x llama-swap)"),
    Bar("swap", "A to B", "per_loaded", "", at_most=1.6, ours=STANDBY),
    Bar("swap", "A to B", "whole_per_loaded", "", at_most=1.6, ours=STANDBY),
    Bar("thrash", "by turns", "answers_per_s", ROUTER, at_least=1.5),
    Bar("thrash", "9 of 10 for A", "answers_per_s", ROUTER, at_least=1.0),
    # max_wait_s, the longest answer that runs, and a load.
    Bar("thrash", "9 of 10 for A", "wait_b_max_s", "", at_most=9, unit=" s"),
    Bar("same", "short prompts", "alike", "", at_least=0.98),
    Bar("same", "short and long prompts", "alike", "", at_least=0.98),
    Bar("gateway", "64 streams", "total_us", "", at_most=50, unit=" µs"),
    Bar("gateway", "tiny request", "p50_s", "", at_most=2, scale=1000, unit=" ms"),
    Bar("speech", "22 s heard", "rtf", BARE, at_most=1.05),
    Bar("speech", "7 s spoken", "rtf", BARE, at_most=1.05),
    Bar("speech", "a minute spoken", "first_per_sentence", "", at_most=1.2),
    Bar("gateway", "500 open streams", "rss_mb", "", at_most=90, unit=" MB"),
]


def verdicts(records: Sequence[Record]) -> list[tuple[Bar, Interval, bool]]:
    """Of the bars that were measured."""
    found = [(bar, bar.found(records)) for bar in BARS]
    return [(b, f, b.met(f)) for b, f in found if f is not None and not math.isnan(f.median)]
