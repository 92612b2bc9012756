"""Clients that ask all the while, and what became of every request.

A request is *lost* when it got no content and an error, or a part of an answer and then silence.
An error after the first content is allowed when something was killed meanwhile: then it is *cut*.
When the supervisor itself was killed there is nobody to answer; a client that has no content yet
asks its successor, as one behind a proxy would.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uml.protocol.errors import Stalled, UmlError
from uml.supervisor.selftest.house import House
from uml.supervisor.selftest.questions import Question, is_right, right_answer, said

_PATIENCE_S = 600.0
_AFTER_A_LOSS_S = 0.2

T = TypeVar("T")


@dataclass
class Asked:
    """A request. outcome: right | wrong | cut | lost. again: times it was put to the next
    supervisor. first_at: when its first content came."""

    model: str
    streamed: bool
    begun: float
    outcome: str = ""
    detail: str = ""
    again: int = 0
    first_at: float | None = None


@dataclass
class Traffic:
    """questions: model -> what it is asked. wanted: the model that clients ask now. kills: how
    many processes were killed so far, whoever did it."""

    house: House
    questions: Mapping[str, Sequence[Question]]
    chance: random.Random
    wanted: str
    kills: int = 0
    done: list[Asked] = field(default_factory=list)
    running: dict[int, Asked] = field(default_factory=dict)
    right: dict[Question, str | list[float]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _stopped: bool = False

    async def learn(self) -> None:
        """Ask each question alone, and remember what came. Raises: UmlError."""
        for asked in self.questions.values():
            for question in asked:
                answer = await self._create(question, question.body(told_chances=True))
                if right := right_answer(question.task, answer):
                    self.right[question] = right

    def start(self, clients: int) -> None:
        for _ in range(clients):
            self._go(self._client())

    def ask_once(self, model: str) -> None:
        """One more request, of a client that comes only now."""
        self._go(self._ask(self._question(model), streamed=True))

    async def stop(self) -> None:
        """Let what runs finish."""
        self._stopped = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def abandon(self) -> None:
        """Cut what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _go(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def asks(self, model: str) -> list[Question]:
        """Questions to `model` whose answer is known."""
        return [q for q in self.questions[model] if q in self.right]

    def _question(self, model: str) -> Question:
        return self.chance.choice(self.asks(model))

    async def _client(self) -> None:
        while not self._stopped:
            question = self._question(self.wanted)
            asked = await self._ask(question, streamed=self.chance.random() < 0.5)
            if asked.outcome == "lost":
                await asyncio.sleep(_AFTER_A_LOSS_S)

    async def _ask(self, question: Question, *, streamed: bool) -> Asked:
        asked = Asked(question.model, streamed and question.task != "embed", time.monotonic())
        number, kills = next(self._numbers), self.kills
        self.running[number] = asked
        try:
            async with asyncio.timeout(_PATIENCE_S):
                given = await self._insist(asked, lambda: self._answer(question, asked))
            right = is_right(given, self.right[question])
            asked.outcome = "right" if right else "wrong"
            asked.detail = "" if right else f"{question.text!r} was answered {given!r:.200}"
        except (UmlError, TimeoutError) as e:
            cut = asked.first_at is not None and self.kills > kills and isinstance(e, UmlError)
            asked.outcome = "cut" if cut else "lost"
            asked.detail = f"{type(e).__name__}: {e or 'no answer in time'}"
        finally:
            del self.running[number]
        self.done.append(asked)
        return asked

    async def _answer(self, question: Question, asked: Asked) -> str | list[float]:
        if not asked.streamed:
            answer = await self._create(question, question.body())
            asked.first_at = time.monotonic()
            return said(question.task, answer)
        text, finished = "", False
        async with await self._create(question, question.body(stream=True)) as stream:
            async for chunk in stream:
                choice = (chunk.choices or [{}])[0]
                piece = choice.get("text") or (choice.get("delta") or {}).get("content")
                if piece and asked.first_at is None:
                    asked.first_at = time.monotonic()
                text += piece or ""
                finished = finished or bool(choice.get("finish_reason"))
        if not finished:
            raise Stalled("the stream ended without an end and without an error")
        return text

    async def _create(self, question: Question, body: dict[str, Any]) -> Any:
        client = self.house.client
        calls: dict[str, Any] = {
            "chat": client.chat.completions,
            "complete": client.completions,
            "embed": client.embeddings,
        }
        return await calls[question.task].create(**body)

    async def order(self, verb: str, model: str) -> None:
        """A person's `swap` or `unload`; counts as a request, and is lost when it fails."""
        asked = Asked(model, False, time.monotonic())
        try:
            await self._insist(asked, lambda: getattr(self.house.client, verb)(model))
            asked.outcome = "right"
        except UmlError as e:
            asked.outcome, asked.detail = "lost", f"{verb}: {type(e).__name__}: {e}"
        self.done.append(asked)

    async def _insist(self, asked: Asked, work: Callable[[], Awaitable[T]]) -> T:
        """Do it; again with the next supervisor when this one was killed before any content."""
        while True:
            await self.house.up()
            killed = self.house.killed
            try:
                return await work()
            except UmlError:
                if asked.first_at is not None or self.house.killed == killed:
                    raise
                asked.again += 1
