"""The long selftest, on the fake device and with real models; `make soak` runs it.

    ./run.py test --soak                  500 swaps each, with kills
    ./run.py test --soak --swaps 50 --only fake
    ./run.py test --soak --for 45m        each ends by then, its swaps done or not
    ./run.py test --soak --write-docs     the last results into docs/reliability.md, and end

The last full result of each is kept in the cache and written into docs/reliability.md. Exit code 1
when anything did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.mount import ROOT  # before all of ours

# isort: split
from tests import pages
from uml.supervisor.paths import cache_dir
from uml.supervisor.units import format_size

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: written by `make soak` -->", "<!-- end of soak -->"
#: What is swapped: the arguments of `selftest`.
RUNS = {"fake": ("--fake",), "real": ("smollm2-135m-instruct", "gemma-3-270m")}
FULL = 500

Result = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run.py test --soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--swaps", type=int, default=FULL)
    parser.add_argument("--for", dest="limit", metavar="TIME", default="60m")
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    held = True
    for name in () if args.write_docs else RUNS:
        if args.only in (None, name):
            held = run(name, args.swaps, args.limit) and held
    write()
    return 0 if held else 1


def run(name: str, swaps: int, limit: str) -> bool:
    """One run; whether everything held. A full one is kept; it has to tell whether memory grows."""
    with _home() as environ:
        done = subprocess.run(
            [
                *(sys.executable, str(ROOT / "run.py"), "selftest", *RUNS[name]),
                *("--chaos", f"--swaps={swaps}", f"--for={limit}", "--json"),
            ],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if not done.stdout:
        return False
    result = json.loads(done.stdout)
    print(table({name: result}))
    for check in result["checks"]:
        print(f"{'ok  ' if check['ok'] else 'NOT '} {check['name']}: {check['text']}")
    if swaps >= FULL:
        kept(name).parent.mkdir(parents=True, exist_ok=True)
        kept(name).write_text(done.stdout)
    if swaps >= FULL and not result["rss_slope"]:
        print("NOT full: no supervisor lived long enough to tell whether its memory grows")
        return False
    return done.returncode == 0


def kept(name: str) -> Path:
    return cache_dir() / "soak" / f"{name}.json"


@contextlib.contextmanager
def _home() -> Iterator[dict[str, str]]:
    """A user who has the tests' backend and models."""
    with tempfile.TemporaryDirectory(prefix="uml-soak-") as folder:
        home = Path(folder)
        environ = os.environ | {
            "UML_HOME": str(home),
            "UML_MODEL_DIRS": os.environ.get("UML_TEST_MODELS", ""),
            "UML_SCAN_DEFAULT_STORES": "false",
        }
        if python := os.environ.get("UML_TEST_LLAMA_PYTHON"):
            (home / "backends").mkdir()
            (home / "backends" / "llama_cpp").symlink_to(Path(python).parent.parent)
        yield environ


def write() -> None:
    """The last full results into the page."""
    results = {name: json.loads(kept(name).read_text()) for name in RUNS if kept(name).exists()}
    if not results:
        return
    pages.put(PAGE, BEGIN, table(results), END)


def table(results: Mapping[str, Result]) -> str:
    """A column for each run."""
    rows = {name: _rows(result) for name, result in results.items()}
    titles = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(' and '.join(r['models']) for r in results.values())} |"]
    lines.append("|---" * (len(results) + 1) + "|")
    lines += [f"| {title} | {' | '.join(r[title] for r in rows.values())} |" for title in titles]
    return "\n".join(lines)


def _rows(r: Result) -> dict[str, str]:
    machine, requests, kills = r["machine"], r["requests"], r["kills"]
    failed = [c["name"] for c in r["checks"] if not c["ok"]]
    at = ", ".join(f"{moment} {count}" for moment, count in kills.items())
    when, minutes = time.strftime("%d %B %Y", time.gmtime(r["at"])), r["seconds"] / 60
    asked = [
        f"{sum(requests.values())}: {requests['right']} right",
        f"{requests['wrong']} wrong",
        f"{requests['cut']} cut after their first content",
        f"**{requests['lost']} lost**",
        f"{r['asked_again']} put to the next supervisor",
    ]
    ram = format_size(machine["ram_bytes"])
    told = {c["name"]: c["text"].replace("\n", "; ") for c in r["checks"]}
    return {
        "result": f"**NOT held: {', '.join(failed)}**" if failed else "everything held",
        "when": f"{when}, took {minutes:.0f} min",
        "machine": f"{machine['cores']} cores ({machine['cpu']}), {ram}, {machine['system']}",
        "versions": f"uml {machine['version']}, Python {machine['python']}",
        "swaps": f"{told['swaps']}, seed {r['seed']}",
        "killed": f"{sum(kills.values())} workers ({at}), {r['supervisors_killed']} supervisors",
        "requests": ", ".join(asked),
        "receipts": ", ".join(f"{count} verified {word}" for word, count in r["receipts"].items()),
        "kill to memory seen back": _spread(r["release_s"]),
        "swap, asked to first token": _spread(r["swap_s"]),
        "the same while something was killed": _spread(r["disturbed_swap_s"]),
        "start of the next supervisor to listening": _spread(r["restart_s"]),
        **{name: told[name] for name in _TOLD},
    }


_TOLD = ("orphans", "ledger", "residue", "fds", "memory")


def _spread(figures: Mapping[str, float]) -> str:
    if not figures:
        return "not measured"
    p50, p99 = (f"{figures[k] * 1000:.0f} ms" for k in ("p50", "p99"))
    return f"p50 {p50}, p99 {p99} (n = {figures['n']})"


if __name__ == "__main__":
    sys.exit(main())
