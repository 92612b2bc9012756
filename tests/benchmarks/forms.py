"""What keeping an answer to a JSON schema costs per token: the same stream free and in a form."""

from __future__ import annotations

import asyncio
import itertools
import time
from statistics import median

from tests.benchmarks.asked import Talk
from tests.benchmarks.bench_run import Run
from tests.benchmarks.servers import ours
from tests.integration.serving import CHAT
from uml.supervisor import bench
from uml.supervisor.bench import Figures

_TEXTS = {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 20}
_FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["old", "new"]}, "size": {"type": "integer"}, "texts": _TEXTS},
    "required": ["kind", "size", "texts"],
}
_FORMS = {
    "free": {"ignore_eos": True},
    "json_schema": {"json_schema": _FORM},
}


async def forms(run: Run) -> None:
    """1 and 8 streams, free and in a form, by turns."""
    with ours() as s:
        async with bench.client() as session:
            talk = Talk(session, s.url)
            for more in _FORMS.values():  # the model, and the vocabulary as a trie
                await _streams(talk, 1, 4, more)
            for number in range(run.rounds):
                for count in (1, 8):
                    for name, more in bench.in_turn(list(_FORMS.items()), number):
                        found = _streams(talk, count, run.tokens, more)
                        await run.measure(f"{count} streams", name, number, found)


async def _streams(talk: Talk, count: int, tokens: int, more: dict[str, object]) -> Figures:
    """Gaps between contents, of all streams."""
    times: list[list[float]] = [[] for _ in range(count)]

    async def one(number: int) -> int:
        said = [{"role": "user", "content": bench.question(12)}]
        body = {"model": CHAT, "messages": said, "max_tokens": tokens, "temperature": 0} | more
        answer = await talk.read(body, lambda: times[number].append(time.perf_counter()))
        return answer.tokens

    told = sum(await asyncio.gather(*(one(n) for n in range(count))))
    gaps = [later - earlier for t in times for earlier, later in itertools.pairwise(t)]
    spoken = sum(t[-1] - t[0] for t in times)
    return {"gap_p50_s": median(gaps), "s_per_token": spoken / max(1, told - count)}
