"""What a simulation found, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.simulation.run import Measured
from uml.supervisor.figures import percentile

#: A request that waited longer has starved.
STARVED_S = 60.0
HEAD = (
    f"{'':6}{'answered':>10}{'refused':>9}{'per s':>8}{'loads':>8}"
    f"{'wait p50':>10}{'p99':>8}{'max':>8}{'> 60 s':>8}{'in use':>8}{'CPU':>8}"
)
_NAMES = {"uml": "uml", "fifo": "FIFO, as llama-swap", "lru": "LRU, as Ollama"}


def row(found: Measured) -> str:
    """One line under `HEAD`. Waits: from request to grant, in seconds; who was never served counts
    with nothing. In use: memory x time held by models while they answered, of all there was."""
    r = found.result
    longest = max(r.waits, default=0.0)
    starved = sum(wait > STARVED_S for wait in r.waits)
    return (
        f"{found.policy:6}{r.answered:>10}{sum(r.refused.values()):>9}"
        f"{r.answered / r.seconds if r.seconds else 0:>8.2f}{r.loads:>8}"
        f"{percentile(r.waits, 50):>10.2f}{percentile(r.waits, 99):>8.1f}{longest:>8.1f}"
        f"{starved:>8}{r.utilisation:>8.1%}{found.cpu_s:>7.1f}s"
    )


def plot(found: Sequence[Measured], path: Path) -> None:
    """The share of requests that waited longer than so many seconds, one panel per scenario."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "uml"
    from matplotlib import pyplot

    scenarios = list(dict.fromkeys(m.scenario.name for m in found))
    columns = 2 if len(scenarios) > 1 else 1
    rows = -(-len(scenarios) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.0 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(scenarios) :]:
        axis.remove()
    for axis, name in zip(axes.flat, scenarios, strict=False):
        for measured in (m for m in found if m.scenario.name == name):
            waits = sorted(measured.result.waits)
            thinned = waits[:: max(1, len(waits) // 2000)] + waits[-1:]
            shares = [1 - i / len(thinned) for i in range(len(thinned))]
            axis.step(
                [max(w, 0.01) for w in thinned],
                shares,
                where="post",
                label=f"{_NAMES[measured.policy]}: {measured.result.loads} loads",
            )
            title = measured.scenario.says
        axis.set(
            xscale="log", yscale="log", xlabel="wait in seconds", ylabel="share that waits longer"
        )
        axis.set_title(title, fontsize=8)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
