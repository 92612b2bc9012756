"""Results as tables and a plot: for the terminal, and for docs/benchmarks.md."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from tests import pages
from tests.benchmarks.bars import NP8, TITLES, verdicts
from tests.benchmarks.records import Record, load, newest, paired
from uml.plugins.builtin import LLAMA_CPP
from uml.supervisor.figures import middle, ratio

BEGIN, END = "<!-- figures: written by --write-docs -->", "<!-- end of figures -->"

#: Section -> the figures shown, and of which of them the ratio is. Seconds shown as ms when small.
SHOWN: dict[str, tuple[str, ...]] = {
    "streams": ("tokens_per_s", "first_p50_s", "first_p99_s", "gap_p50_s", "gap_p99_s", "lost"),
    "crowd": ("tokens_per_s", "first_p50_s", "first_p99_s", "gap_p50_s", "gap_p99_s", "lost"),
    "long-prompt": ("gap_p50_s", "gap_p99_s", "gap_max_s", "long_first_s", "tokens_per_s", "lost"),
    "chats": (
        "prefilled_per_new",
        "prefilled_per_new_after_the_first",
        "system_computed_times",
        "first_p50_s",
        "first_p99_s",
    ),
    "same": ("alike",),
    "forms": ("gap_p50_s", "s_per_token"),
    "swap": (
        "first_s",
        "loaded_first_s",
        "per_loaded",
        "whole_per_loaded",
        "release_p50_s",
        "release_p99_s",
        "verified",
        "receipts",
    ),
    "thrash": (
        "answers_per_s",
        "wait_a_p50_s",
        "wait_a_max_s",
        "wait_b_p50_s",
        "wait_b_max_s",
        "lost",
    ),
    "gateway": (
        "total_us",
        "supervisor_us",
        "worker_us",
        "p50_s",
        "p99_s",
        "rss_mb",
        "rss_before_mb",
    ),
    "memory": ("supervisor_empty_mb", "supervisor_mb", "worker_mb"),
}


def table(results: Path, sections: Collection[str] = ()) -> str:
    """Markdown: each section's table, then the bars."""
    records = [r for r in newest(load(results)) if not sections or r.section in sections]
    parts = []
    for name in SHOWN:
        if found := [r for r in records if r.section == name]:
            rounds = len({(r.run, r.round) for r in found})
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(r.at for r in found)))
            others = middle([r.foreign_cores for r in found]).median
            note = f"{rounds} rounds, commit {found[0].commit or 'unknown'}, {when}"
            note += f", others used {others:.2f} cores"
            parts.append(f"### {name}\n\n{note}\n\n{_table(found, SHOWN[name])}")
    return "\n\n".join([*parts, "### bars", _bars(records)])


def _table(records: Sequence[Record], figures: Sequence[str]) -> str:
    figures = [f for f in figures if any(f in r.figures for r in records)]
    rows = [["", *("" for _ in figures)], ["---"] * (len(figures) + 1)]
    rows[0] = ["", *(TITLES[f] for f in figures)]
    for case in dict.fromkeys(r.case for r in records):
        of_case = [r for r in records if r.case == case]
        for server in dict.fromkeys(r.server for r in of_case):
            cells = [_cell(of_case, server, figure) for figure in figures]
            rows.append([f"{case}: {server}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(records: Sequence[Record], server: str, figure: str) -> str:
    """The median with its interval; of another server's also what ours is of it."""
    values = [r.figures[figure] for r in records if r.server == server and figure in r.figures]
    values = [v for v in values if not math.isnan(v)]
    if not values:
        return ""
    if figure in ("lost", "verified", "receipts"):
        return f"{sum(values):.0f}"
    found = middle(values)
    text = _number(figure, found.median)
    if len(values) > 1:
        text += f" [{_number(figure, found.low)}, {_number(figure, found.high)}]"
    if server != "uml":
        ours, theirs = paired(records, "uml", server, figure)
        if ours:
            text += f"; uml {ratio(ours, theirs)}"
    return text


def _number(figure: str, value: float) -> str:
    if figure.endswith("per_s"):
        return f"{value:.1f}"
    if figure.endswith("_s"):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
    if figure.endswith("_us"):
        return f"{value:.1f} µs"
    if figure.endswith("_mb"):
        return f"{value:.0f} MB"
    return f"{value:.2f}"


def _bars(records: Sequence[Record]) -> str:
    rows = ["| bar | found | |", "|---|---|---|"]
    for bar, found, met in verdicts(records):
        text = (
            str(found) if bar.theirs else f"{found.median:.3g} [{found.low:.3g}, {found.high:.3g}]"
        )
        rows.append(f"| {bar} | {text} | {'met' if met else '**not met**'} |")
    return "\n".join(rows)


def write(results: Path, docs: Path) -> None:
    """Put the tables between the marks of benchmarks.md, and the plot beside it."""
    page = docs / "benchmarks.md"
    pages.put(page, BEGIN, f"{_machine()}\n\n{table(results)}", END)
    try:
        plot(newest(load(results)), docs / "benchmarks.svg")
    except ImportError:
        print("no plot: matplotlib is not installed (it comes with the dev extra)")


def _machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{psutil.cpu_count()} cores ({cpu}), {memory:.0f} GB, no GPU used, {_distribution()}, "
        f"Python {platform.python_version()}, {LLAMA_CPP.requirements[0]}, SmolLM2-135M-Instruct "
        f"Q4_1; written {time.strftime('%Y-%m-%d')}."
    )


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform()


def plot(records: Sequence[Record], path: Path) -> None:
    """Tokens per second and first tokens by number of streams. Raises: ImportError."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "uml"
    from matplotlib import pyplot

    waves = [r for r in records if r.section in ("streams", "crowd")]
    counts = sorted({int(r.case.split()[0]) for r in waves})
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    panels = (
        ("tokens_per_s", "tokens/s, all streams"),
        ("first_p50_s", "first token p50, seconds"),
    )
    servers = [s for s in ("uml", NP8, "llama-server -np 32", "bare loop") if _has(waves, s)]
    for axis, (name, title) in zip(axes, panels, strict=True):
        for number, server in enumerate(servers):
            for place, count in enumerate(counts):
                found = middle(
                    [
                        r.figures[name]
                        for r in waves
                        if (r.server, r.case) == (server, f"{count} streams") and name in r.figures
                    ]
                )
                if math.isnan(found.median):
                    continue
                error = [[found.median - found.low], [found.high - found.median]]
                width = 0.8 / len(servers)
                axis.bar(
                    place + (number - (len(servers) - 1) / 2) * width,
                    found.median,
                    width,
                    yerr=error,
                    color=f"C{number}",
                    label=server if place == len(counts) - 1 else None,
                    capsize=2,
                )
        axis.set_xticks(range(len(counts)), [f"{c}" for c in counts])
        axis.set_xlabel("streams")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    seconds = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes[1].set_yticks(seconds, [f"{s:g}" for s in seconds])
    axes[1].set_yticks([], minor=True)
    axes[0].legend(frameon=False, loc="upper left")
    axes[0].margins(y=0.35)
    pyplot.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _has(records: Sequence[Record], server: str) -> bool:
    return any(r.server == server for r in records)
