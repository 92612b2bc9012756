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
from uml.workers.backends.llama_cpp import calls, channels, dialects, grammar, tools
from uml.workers.backends.llama_cpp.channels import ChannelReply
from uml.workers.backends.llama_cpp.grammar import Form, Thinking
from uml.workers.backends.llama_cpp.guide import Guides
from uml.workers.backends.llama_cpp.messages import normalise
from uml.workers.backends.llama_cpp.replies import THINK, THOUGHT, ChatReply
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
        source = template.source if template else ""
        self._dialect = dialects.recognise(source)
        self._thinks = THOUGHT in source
        self._marks = _marks(vocab, self._dialect)
        self._guides = Guides(vocab, self._marks)
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
            tokens, thinking = self._tokens(text, "messages"), self._thinking(text)
        elif isinstance(task, Complete):
            tokens, thinking = self._complete(task), "no"
        else:
            raise TaskNotSupported(f"this model cannot {task.name}")
        if len(tokens) > self._n_ctx - 1:
            raise ContextLengthExceeded(
                f"the prompt has {len(tokens)} tokens, the context is {self._n_ctx} and the answer"
                " needs room in it too",
                param="messages" if isinstance(task, Chat) else "prompt",
            )
        return self._request(job, task, tokens, thinking)

    def _thinking(self, prompt: str) -> Thinking:
        """Whether the answer to `prompt` begins with reasoning."""
        end = prompt.rstrip()
        if end.endswith(THINK):
            return "begun"
        return "may" if self._thinks and not end.endswith(THOUGHT) else "no"

    def _request(self, job: Job, task: Generate, tokens: list[int], thinking: Thinking) -> Request:
        if not 1 <= task.n <= _MOST_CHOICES:
            raise BadRequest(f"n is {task.n}; it has to be 1 to {_MOST_CHOICES}", param="n")
        form = grammar.of(task, self._dialect, thinking)
        ends = not task.ignore_eos or form is not None
        request = Request(
            job,
            len(tokens),
            top_logprobs=task.top_logprobs,
            ends=ends,
            repeatable=task.seeded,
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
                    gbnf=form.text if form and form.gbnf else None,
                    guide=None
                    if form is None or form.gbnf
                    else self._guides.guide(form.text, form.param),
                )
                stream, reply = TextStream(task.stop), self._reply(task, form, thinking)
                request.sequences.append(
                    Sequence(request, index, list(tokens), sampler, stream, reply, limit)
                )
        except UmlError:
            for sequence in request.sequences:
                sequence.sampler.free()
            raise
        return request

    def _reply(self, task: Generate, form: Form | None, thinking: Thinking) -> Reply:
        if not isinstance(task, Chat):
            return PlainReply()
        known = [] if task.tool_choice == "none" else tools.names(task.tools)
        several, split = task.parallel_tool_calls, task.reasoning_format != "none"
        if self._dialect.name == "harmony":
            return ChannelReply(known, several=several, split=split)
        # A grammar of the request's own holds from the first token on.
        begun = thinking == "begun" and not (form and form.param == "grammar")
        return ChatReply(known, thinking=begun, several=several, split=split)

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
        if not dialects.knows_tools(template.source):
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


def _marks(vocab: Vocab, dialect: dialects.Dialect) -> frozenset[int]:
    """Tokens that are marks in an answer, though their text is not shown otherwise."""
    texts = [*calls.MARKS, THINK, THOUGHT]
    if dialect.name == "harmony":
        texts += channels.MARKS
    found = (vocab.tokens(text, special=True) for text in texts)
    return frozenset(ids[0] for ids in found if len(ids) == 1 and not vocab.is_end(ids[0]))
