"""uml beside llama-server, in one interleaved run, written up as docs/benchmarks.md says.

    ./run.py test prepares the environment; then, with a llama-server built with the same flags:
    python tests/benchmarks/side_by_side.py --llama-server PATH [--rounds 10] [--out FILE]

Not a test: it judges nothing. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if "uml" not in sys.modules:
    _uml = types.ModuleType("uml")
    _uml.__path__ = [str(ROOT)]
    sys.modules["uml"] = _uml
    sys.path.insert(0, str(ROOT))

from tests.integration.serving import BASE, CHAT, Serving, serving  # noqa: E402
from uml.supervisor import bench  # noqa: E402

STREAMS = (1, 4, 8, 32)


def wait_for(url: str, seconds: float = 60.0) -> None:
    import urllib.request

    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"{url} did not come up")
        time.sleep(0.1)


@contextlib.contextmanager
def process(argv: list[str]) -> Iterator[None]:
    running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


async def streams(servers: list[bench.Server], rounds: int, tokens: int) -> list[str]:
    found = await bench.compare(servers, STREAMS, rounds, tokens, lambda t: print(t, flush=True))
    lines = [
        "| | streams | tok/s | uml / it | first token p50 | uml / it | gap p50 | gap p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_streams in found.items():
        for count, results in by_streams.items():
            mine = found["uml"][count]

            def versus(key: str, mine: list = mine, results: list = results) -> str:
                return str(bench.ratio([r[key] for r in mine], [r[key] for r in results]))

            middle = {k: statistics.median(r[k] for r in results) for k in results[0]}
            other = name != "uml"
            lines.append(
                f"| {name} | {count} | {middle['tokens_per_s']:.1f} | "
                f"{versus('tokens_per_s') if other else ''} | {middle['first_p50_s']:.3f} s | "
                f"{versus('first_p50_s') if other else ''} | {middle['gap_p50_s'] * 1000:.1f} ms | "
                f"{middle['gap_p99_s'] * 1000:.1f} ms |"
            )
    return lines


async def swaps(s: Serving, rounds: int) -> list[str]:
    """A -> B -> A with room for one: from the request to the first token, release verified."""
    mine = bench.Server("uml", s.url, CHAT)
    loaded: list[float] = []
    swapped: list[float] = []
    async with bench.client() as session:
        await bench.swap_to(session, mine, CHAT)
        for number in range(rounds):
            model = (BASE, CHAT)[number % 2]
            swapped.append(await bench.swap_to(session, mine, model))
            loaded.append(await bench.swap_to(session, mine, model))
    receipts = s.client.status()["receipts"][-rounds:]
    verified = sum(r["verified"] == "yes" for r in receipts)
    release = [r["ms"] for r in receipts]
    return [
        f"{rounds} swaps between {CHAT} and {BASE}: request to first token p50 "
        f"{statistics.median(swapped):.2f} s, max {max(swapped):.2f} s; the same request of the "
        f"loaded model {statistics.median(loaded):.2f} s; {verified} of {len(receipts)} receipts "
        f"verified; kill to released p50 {bench.percentile(release, 50):.0f} ms, p99 "
        f"{bench.percentile(release, 99):.0f} ms.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parallel", default="8")
    parser.add_argument("--port", type=int, default=8611)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    models = Path(os.environ["UML_TEST_MODELS"])
    gguf = next(models.glob("SmolLM2*.gguf"))
    lines = []
    with tempfile.TemporaryDirectory() as home:
        with serving(Path(home), UML_MAX_LOADED="1") as s:
            lines += asyncio.run(swaps(s, 2 * args.rounds))
        print("\n".join(lines), flush=True)
        peers, stack = [], contextlib.ExitStack()
        with stack:
            s = stack.enter_context(serving(Path(home)))
            for n, parallel in enumerate(args.parallel.split(",")):
                url = f"http://127.0.0.1:{args.port + n}"
                context = str(max(8, int(parallel)) * 1024)
                argv = [str(args.llama_server), "-m", str(gguf), "-t", str(os.cpu_count())]
                argv += ["-np", parallel, "-c", context, "--port", str(args.port + n)]
                stack.enter_context(process([*argv, "--host", "127.0.0.1"]))
                wait_for(url)
                peers.append(bench.Server(f"llama-server -np {parallel}", url, CHAT))
            mine = bench.Server("uml", s.url, CHAT)
            lines += ["", *asyncio.run(streams([mine, *peers], args.rounds, args.tokens))]
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
