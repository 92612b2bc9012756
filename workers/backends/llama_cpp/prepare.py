"""From a task to a `Request` with token ids, samplers and all: on a thread of its own.

Templates and tokenising would hold up the decode loop, and the reader's thread has to stay free
for cancels.
"""

from __future__ import annotations

import random
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from uml.protocol.errors import (
    BadRequest,
    ContextLengthExceeded,
    InternalError,
    TaskNotSupported,
    UmlError,
)
from uml.protocol.tasks import Chat, Complete, Generate
from uml.workers.backends.llama_cpp import grammar, tools
from uml.workers.backends.llama_cpp.messages import normalise
from uml.workers.backends.llama_cpp.replies import MARKS, THINK, ChatReply
from uml.workers.backends.llama_cpp.sampling import Sampler
from uml.workers.backends.llama_cpp.sequence import PlainReply, Reply, Request, Sequence
from uml.workers.backends.llama_cpp.template import ChatTemplate
from uml.workers.backends.llama_cpp.text import TextStream
from uml.workers.backends.llama_cpp.vocab import Vocab
from uml.workers.base import Job

_SEEDS = 1 << 32
#: Choices of one request.
_MOST_CHOICES = 64


class Preparer:
    """ready: takes each prepared request, on the preparer's thread. seed: instead of chance."""

    def __init__(
        self,
        vocab: Vocab,
        template: ChatTemplate | None,
        n_ctx: int,
        ready: Callable[[Request], None],
        flush: Callable[[], None],
        seed: int | None = None,
    ) -> None:
        self._vocab, self._template, self._n_ctx = vocab, template, n_ctx
        self._ready, self._flush = ready, flush
        self._random = random.Random(seed)
        marks = (vocab.tokens(mark, special=True) for mark in MARKS)
        self._marks = frozenset(ids[0] for ids in marks if len(ids) == 1)
        self._jobs: deque[Job] = deque()
        self._wake = threading.Semaphore(0)
        threading.Thread(target=self._run, name="prepare", daemon=True).start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        self._wake.release()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            job = self._jobs[0]
            self._one(job)
            self._jobs.popleft()

    def _one(self, job: Job) -> None:
        try:
            if not job.cancelled:
                self._ready(self._prepare(job))
                return
            job.finish(["cancelled"])
        except UmlError as e:
            job.fail(e)
        except Exception as e:
            traceback.print_exc()
            job.fail(InternalError(f"{type(e).__name__}: {e}"))
        self._flush()

    def _prepare(self, job: Job) -> Request:
        task = job.task
        if isinstance(task, Chat):
            text = self._chat(task)
            tokens = self._tokens(text, "messages")
            thinking = text.rstrip().endswith(THINK)
        elif isinstance(task, Complete):
            tokens, thinking = self._complete(task), False
        else:
            raise TaskNotSupported(f"this model cannot {task.name}")
        if len(tokens) > self._n_ctx - 1:
            raise ContextLengthExceeded(
                f"the prompt has {len(tokens)} tokens, the context is {self._n_ctx} and the answer"
                " needs room in it too",
                param="messages" if isinstance(task, Chat) else "prompt",
            )
        return self._request(job, task, tokens, thinking)

    def _request(self, job: Job, task: Generate, tokens: list[int], thinking: bool) -> Request:
        if not 1 <= task.n <= _MOST_CHOICES:
            raise BadRequest(f"n is {task.n}; it has to be 1 to {_MOST_CHOICES}", param="n")
        rules = grammar.of(task, self._template.source if self._template else "")
        ends = not task.ignore_eos or rules is not None
        request = Request(
            job,
            len(tokens),
            top_logprobs=task.top_logprobs,
            ends=ends,
            repeatable=task.sampling.seed is not None or task.sampling.temperature <= 0,
            speculate=not task.seeded,
        )
        if isinstance(task, Complete) and task.echo:
            text = task.prompt
            request.echo = text if isinstance(text, str) else self._vocab.text(text)
        if isinstance(task, Chat):
            request.marks = self._marks
        limit = self._n_ctx
        if task.max_tokens is not None:
            limit = min(limit, len(tokens) + max(0, task.max_tokens))
        seed = task.sampling.seed
        if seed is None:
            seed = self._random.randrange(_SEEDS)
        try:
            for index in range(task.n):
                sampler = Sampler(
                    self._vocab,
                    task.sampling,
                    seed=(seed + index) % _SEEDS,
                    n_ctx=self._n_ctx,
                    prompt=tokens,
                    forbidden=[] if ends else self._vocab.ends,
                    grammar=rules,
                )
                stream, reply = TextStream(task.stop), _reply(task, thinking and rules is None)
                request.sequences.append(
                    Sequence(request, index, list(tokens), sampler, stream, reply, limit)
                )
        except UmlError:
            for sequence in request.sequences:
                sequence.sampler.free()
            raise
        return request

    def _chat(self, task: Chat) -> str:
        """The prompt as text."""
        template = self._template
        if template is None:
            raise TaskNotSupported(
                "this model has no chat template (a base model): use /v1/completions"
            )
        messages = normalise(task.messages)
        functions = [] if task.tool_choice == "none" else task.tools
        tools.names(functions)
        if "tools" not in template.source:
            messages, functions = tools.describe(messages, functions), []
        return template.render(messages, functions, task.template_options)

    def _complete(self, task: Complete) -> list[int]:
        prompt: Any = task.prompt
        if task.suffix is not None:
            if not isinstance(prompt, str):
                raise BadRequest("a suffix wants the prompt as text", param="suffix")
            return self._vocab.infill(prompt, task.suffix)
        if isinstance(prompt, str):
            return self._tokens(prompt, "prompt")
        if not prompt:
            raise BadRequest("the prompt is empty", param="prompt")
        return self._vocab.check(list(prompt), "prompt")

    def _tokens(self, text: str, param: str) -> list[int]:
        """With one BOS if the model wants it, whether the template wrote one or not."""
        vocab = self._vocab
        if vocab.adds_bos and vocab.bos >= 0:
            text = text.removeprefix(vocab.name(vocab.bos))
        tokens = vocab.tokens(text, add_special=True, special=True)
        if not tokens and vocab.bos >= 0:
            tokens = [vocab.bos]  # a model without BOS in front still has one to begin with
        if not tokens:
            raise BadRequest("the prompt is empty", param=param)
        return tokens


def _reply(task: Generate, thinking: bool) -> Reply:
    if not isinstance(task, Chat):
        return PlainReply()
    known = [] if task.tool_choice == "none" else tools.names(task.tools)
    return ChatReply(known, thinking=thinking, several=task.parallel_tool_calls)
