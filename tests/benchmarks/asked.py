"""What the mixed load asks, and how an answer compares with the same one given alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.integration.serving import CHAT
from uml.supervisor import bench

#: Tokens that are compared.
_FIRST = 16
#: Two tokens this near, in nats, may change places with the shape of a batch.
NEAR = 0.35
_TIMEOUT_S = 600
_THINGS = (
    *("river", "harbour", "clock", "garden", "lighthouse", "market", "train", "violin"),
    *("mountain", "library", "kitchen", "bridge", "letter", "storm", "orchard", "mirror"),
)
_PLACE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["old", "new"]},
    },
    "required": ["name", "size", "kind"],
}

#: A token's text and its likeliest rivals (text -> logprob, itself among them).
Token = tuple[str, dict[str, float]]


class Refused(Exception):
    """The server did not answer 200, or broke off."""


@dataclass
class Answer:
    choices: list[list[Token]] = field(default_factory=list)
    text: str = ""
    finish: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


def first_difference(alone: list[Token], other: list[Token]) -> tuple[int | None, float | None]:
    """(place, nats): where the first tokens part, and how near the two were; (place, None) when
    they were not near, (None, None) when they do not part."""
    for place, (mine, its) in enumerate(zip(alone[:_FIRST], other[:_FIRST], strict=False)):
        if mine[0] != its[0]:
            gaps = [
                abs(rivals[mine[0]] - rivals[its[0]])
                for rivals in (mine[1], its[1])
                if mine[0] in rivals and its[0] in rivals
            ]
            near = gaps and min(gaps) <= NEAR
            return place, min(gaps) if near else None
    if min(len(alone), _FIRST) != min(len(other), _FIRST):  # one of them ended early
        return min(len(alone), len(other)), None
    return None, None


def _says(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": CHAT,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    } | more


def _long(number: int, words: int) -> str:
    rng = random.Random(number)
    return f"List {number}: " + " ".join(rng.choice(_THINGS) for _ in range(words)) + ". Sum it up."


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


#: The greedy requests, by a name that begins with their kind.
GREEDY = {
    **{f"short {t}": _says(f"Write one sentence about a {t}.") for t in _THINGS},
    **{f"long {i}": _says(_long(i, 300 * i)) for i in range(1, 6)},
    **{
        f"schema {t}": _says(f"Describe a {t}.", response_format=_form(_PLACE)) for t in _THINGS[:6]
    },
    **{f"n=4 {t}": _says(f"Name a famous {t}.", n=4) for t in _THINGS[:6]},
    **{
        f"grammar {t}": _says(f"Is a {t} old?", grammar='root ::= "yes" | "no"')
        for t in _THINGS[:4]
    },
}


def story(rng: random.Random) -> dict[str, Any]:
    text = f"Tell a very long story about a {rng.choice(_THINGS)} and {rng.randrange(10**6)} men."
    return _says(text, max_tokens=400, temperature=1, ignore_eos=True)


def sampled(rng: random.Random) -> tuple[dict[str, Any], Callable[[str], bool]]:
    """A request whose answer is JSON, and what is true of it."""
    body = _says(
        f"Make up a {rng.choice(_THINGS)}.",
        response_format=_form(_PLACE),
        temperature=1,
        max_tokens=80,
    )

    def valid(text: str) -> bool:
        try:
            return set(json.loads(text)) == {"name", "size", "kind"}
        except ValueError:
            return False

    return body, valid


class Talk:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def ask(self, body: dict[str, Any], *, stream: bool = False) -> Answer:
        """With the rivals of every token. Raises: Refused."""
        body = body | {"logprobs": True, "top_logprobs": 5}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._post(body) as response:
            if response.status != 200:
                raise Refused(f"{response.status}: {(await response.text())[:200]}")
            return await (_streamed(response) if stream else _whole(response))

    async def read(self, body: dict[str, Any], heard: Callable[[], None]) -> Answer:
        """A stream; heard: called for each content as it comes. Raises: Refused."""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._post(body) as response:
            if response.status != 200:
                raise Refused(f"{response.status}: {(await response.text())[:200]}")
            return await _streamed(response, heard)

    async def drop(self, body: dict[str, Any], *, after: int) -> Answer:
        """A stream that is left after so many contents, or before any comes."""
        found = Answer()
        async with self._post(body | {"stream": True}) as response:
            if response.status != 200:
                raise Refused(f"{response.status}: {(await response.text())[:200]}")
            while found.tokens < after:
                line = await response.content.readline()
                if not line:
                    raise Refused("the stream broke off")
                found.tokens += b'"content"' in line
            response.close()
        return found

    async def turn(
        self, chat: Sequence[dict[str, str]], rng: random.Random
    ) -> tuple[list[dict[str, str]], Answer]:
        """One more turn of a chat: (the chat with its answer, the answer)."""
        text = f"{rng.randrange(1000)}: tell me about a {rng.choice(_THINGS)}."
        said = [*chat, {"role": "user", "content": text}]
        answer = await self.ask(_says("", messages=said), stream=True)
        return [*said, {"role": "assistant", "content": answer.text}], answer

    async def worker(self) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/status") as response:
            found = await response.json()
        worker: dict[str, Any] = next(w for w in found["workers"] if w["model"] == CHAT)
        return worker

    async def until_idle(self, seconds: float = 10.0) -> float:
        """Seconds until nothing runs."""
        started = time.monotonic()
        while (await self.worker())["busy"] and time.monotonic() - started < seconds:
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    def _post(self, body: dict[str, Any]) -> Any:
        url = f"{self._url}/v1/chat/completions"
        return self._session.post(url, json=body, timeout=aiohttp.ClientTimeout(_TIMEOUT_S))


def _tokens(logprobs: dict[str, Any] | None) -> list[Token]:
    entries = (logprobs or {}).get("content") or []
    return [(e["token"], {t["token"]: t["logprob"] for t in e["top_logprobs"]}) for e in entries]


def _count(answer: Answer, usage: dict[str, Any]) -> None:
    answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def _whole(response: aiohttp.ClientResponse) -> Answer:
    body = await response.json()
    found = Answer(
        choices=[_tokens(c["logprobs"]) for c in body["choices"]],
        text=body["choices"][0]["message"]["content"],
        finish=[c["finish_reason"] for c in body["choices"]],
    )
    _count(found, body["usage"])
    return found


async def _streamed(
    response: aiohttp.ClientResponse, heard: Callable[[], None] = lambda: None
) -> Answer:
    found, choices, finish = Answer(), dict[int, list[Token]](), dict[int, str]()
    done = False
    async for event in bench.events(response):
        if event is None:
            done = True
            continue
        if "error" in event:
            raise Refused(str(event["error"])[:200])
        if event.get("usage"):
            _count(found, event["usage"])
        for choice in event["choices"]:
            index = choice["index"]
            choices.setdefault(index, []).extend(_tokens(choice.get("logprobs")))
            finish[index] = choice["finish_reason"] or finish.get(index, "")
            if index == 0 and (text := choice["delta"].get("content")):
                found.text += text
                heard()
    if not done:
        raise Refused("the stream broke off")
    found.choices = [choices[i] for i in sorted(choices)]
    found.finish = [finish[i] for i in sorted(finish)]
    return found
