"""Embeddings: texts of many requests packed into one batch, one sequence each."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.protocol.errors import BadRequest, ContextLengthExceeded, InternalError, UmlError
from uml.protocol.tasks import Embed
from uml.workers.backends.llama_cpp.batch import Batch
from uml.workers.backends.llama_cpp.spin import Spin
from uml.workers.backends.llama_cpp.vocab import Vocab
from uml.workers.base import Job, Outbox


@dataclass(eq=False)
class _Work:
    """inputs: token ids of those not in a batch yet. left: vectors still to come."""

    job: Job
    dimensions: int | None
    inputs: deque[tuple[int, list[int]]] = field(default_factory=deque)
    left: int = 0
    tokens: int = 0
    arrived_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None


class EmbedEngine:
    """Threads: one, which tokenises and encodes in turn. n_seq: texts per batch. threads: how many
    of the library's may compute, asked for every batch."""

    def __init__(
        self,
        context: Any,
        vocab: Vocab,
        outbox: Outbox,
        n_ctx: int,
        n_batch: int,
        n_seq: int,
        threads: Callable[[], int],
    ) -> None:
        self._context, self._vocab, self._outbox = context, vocab, outbox
        self._memory = lib.llama_get_memory(context)
        self._width: int = lib.llama_model_n_embd_out(lib.llama_get_model(context))
        self._n_ctx, self._n_seq, self._threads = n_ctx, n_seq, threads
        self._batch = Batch(n_batch)
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._works: deque[_Work] = deque()
        self.steps = 0
        self.busy = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="embed", daemon=True).start()

    def submit(self, job: Job) -> None:
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    @property
    def queued(self) -> int:
        return len(self._inbox) + len(self._works)

    def _run(self) -> None:
        spin = Spin()
        while True:
            with self._wake:
                while not (self._inbox or self._works):
                    self._wake.wait()
            spin.look(time.monotonic())
            try:
                self._take_in()
                self._step()
            except Exception as e:
                traceback.print_exc()
                while self._works:
                    self._works.popleft().job.fail(InternalError(f"{type(e).__name__}: {e}"))
            self._outbox.flush()

    def _take_in(self) -> None:
        """Tokenise one request, more when nothing else is to do."""
        while self._inbox:
            job = self._inbox.popleft()
            try:
                self._works.append(self._work(job))
                return
            except UmlError as e:
                job.fail(e)

    def _work(self, job: Job) -> _Work:
        task = job.task
        if not isinstance(task, Embed):
            raise BadRequest(f"not an embedding task: {task.name}")
        if task.dimensions is not None and not 1 <= task.dimensions <= self._width:
            raise BadRequest(
                f"dimensions is {task.dimensions}; this model's vectors have {self._width}",
                param="dimensions",
            )
        if not task.inputs:
            raise BadRequest("input is empty", param="input")
        work = _Work(job, task.dimensions, left=len(task.inputs))
        for index, text in enumerate(task.inputs):
            tokens = self._tokens(text)
            work.tokens += len(tokens)
            work.inputs.append((index, tokens))
        return work

    def _tokens(self, text: Any) -> list[int]:
        if isinstance(text, str):
            data = self._vocab.tokens(text, add_special=True, closed=True)
        elif isinstance(text, list):
            data = self._vocab.check(text, "input")
        else:
            raise BadRequest("input is neither text nor token ids", param="input")
        if not data:
            raise BadRequest("input is empty", param="input")
        if len(data) > self._n_ctx:
            raise ContextLengthExceeded(
                f"the input has {len(data)} tokens, the context is {self._n_ctx}", param="input"
            )
        return data

    def _step(self) -> None:
        batch, placed = self._batch, list[tuple[_Work, int]]()
        batch.clear()
        for work in list(self._works):
            if work.job.cancelled:
                self._works.remove(work)
                work.job.finish(["cancelled"])
                continue
            if work.job.blocked:
                continue
            work.started_at = work.started_at or time.monotonic()
            while work.inputs and len(placed) < self._n_seq:
                index, tokens = work.inputs[0]
                if batch.count + len(tokens) > batch.capacity:
                    break
                work.inputs.popleft()
                batch.run(tokens, 0, len(placed), output=True, every=True)
                placed.append((work, index))
        self.busy = len({id(work) for work, _ in placed})
        if placed:
            self._compute(placed)
        elif self._works:
            with self._wake:
                self._wake.wait(0.005)
        self.busy = 0

    def _compute(self, placed: list[tuple[_Work, int]]) -> None:
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        threads = self._threads()
        lib.llama_set_n_threads(self._context, threads, threads)
        if status := lib.llama_decode(self._context, self._batch.c):
            raise RuntimeError(f"llama_decode gave {status}")
        self.steps += 1
        for sequence, (work, index) in enumerate(placed):
            pointer = lib.llama_get_embeddings_seq(self._context, sequence)
            vector = np.ctypeslib.as_array(pointer, (self._width,))[: work.dimensions]
            work.job.emit(index, {"vector": _normal(vector)})
            work.left -= 1
            if not work.left:
                self._works.remove(work)
                self._finish(work)

    def _finish(self, work: _Work) -> None:
        now = time.monotonic()
        started = work.started_at or now
        work.job.finish(
            ["stop"],
            {"prompt_tokens": work.tokens, "completion_tokens": 0, "cached_tokens": 0},
            {"queue": started - work.arrived_at, "prompt": now - started, "generate": 0.0},
        )


def _normal(vector: Any) -> bytes:
    """Length 1, float32 little-endian; a zero vector stays zero."""
    length = math.sqrt(float(np.dot(vector, vector)))
    scaled = vector / length if length > 0 else vector
    data: bytes = scaled.astype("<f4").tobytes()
    return data
