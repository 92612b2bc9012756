"""What the host sees of llama.cpp: `LlamaCpp`. Imports the library only when asked to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from uml.protocol.errors import BadRequest, TaskNotSupported
from uml.protocol.messages import Load, Ready
from uml.protocol.tasks import Chat, Complete, Embed, Task
from uml.workers.base import Backend, Job, Outbox, Progress

if TYPE_CHECKING:
    from uml.workers.backends.llama_cpp.embed import EmbedEngine
    from uml.workers.backends.llama_cpp.engine import Engine
    from uml.workers.backends.llama_cpp.load import Loaded
    from uml.workers.backends.llama_cpp.log import Log
    from uml.workers.backends.llama_cpp.prefix import Shelf
    from uml.workers.backends.llama_cpp.prepare import Preparer
    from uml.workers.backends.llama_cpp.reading import Reading

#: How long a thread in Python may keep the decode loop waiting, in seconds (5 ms is the default).
_SWITCH_S = 0.0005


class LlamaCpp(Backend):
    name: ClassVar[str] = "llama_cpp"

    def __init__(self, outbox: Outbox, log: Callable[..., None]) -> None:
        super().__init__(outbox, log)
        self._llama_log: Log | None = None
        self._reading: Reading | None = None
        self._loaded: Loaded | None = None
        self._engine: Engine | EmbedEngine | None = None
        self._preparer: Preparer | None = None
        self._shelf: Shelf | None = None

    def versions(self) -> dict[str, str]:
        from uml.workers.backends.llama_cpp import library

        found = library.bring()
        from uml.workers.backends.llama_cpp.log import Log

        self._llama_log = Log()
        self._llama_log.catch()
        return found

    def prepare(self, files: list[str]) -> None:
        """Begin to read the vocabulary."""
        from uml.workers.backends.llama_cpp.reading import Reading

        if self._reading is None or self._reading.files != files:
            self._reading = Reading(files, self._reading)

    def load(self, load: Load, progress: Progress) -> Ready:
        from uml.workers.backends.llama_cpp.load import load as load_model

        if self._llama_log is None:
            self.versions()
        assert self._llama_log is not None
        sys.setswitchinterval(_SWITCH_S)
        self.prepare(load.files)
        assert self._reading is not None
        loaded = self._loaded = load_model(
            load, self._reading, self._llama_log, progress, lambda: self.threads, self.beat
        )
        if loaded.embedding:
            self._start_embedding(loaded)
        else:
            self._start_answering(loaded)
        return Ready(slots=loaded.options.slots, facts=loaded.facts, memory=self.memory())

    def can(self, task: Task) -> bool:
        """`submit` says in more words what cannot be done, and why."""
        return isinstance(task, (Chat, Complete, Embed))

    def submit(self, job: Job) -> None:
        if isinstance(job.task, Embed):
            if self._preparer is not None:
                raise TaskNotSupported("this model writes text; embeddings want an embedding model")
            if self._loaded is not None and self._loaded.scores:
                raise TaskNotSupported("this model scores pairs of texts; it makes no embeddings")
        elif self._preparer is None:
            raise TaskNotSupported("this model makes embeddings and writes no text")
        (self._preparer or self._embedder).submit(job)

    def cancel(self, job: Job) -> None:
        cancel = getattr(self._engine, "cancel", None)
        if cancel is not None:
            cancel()

    def stats(self) -> tuple[int, int, int]:
        engine, preparer = self._engine, self._preparer
        if engine is None:
            return 0, 0, 0
        waiting = preparer.waiting if preparer else 0
        return engine.busy, engine.queued + waiting, engine.steps

    def memory(self) -> dict[str, int]:
        if self._loaded is None:
            return {}
        parked = self._shelf.private_bytes if self._shelf else 0
        context, kv_bytes = self._loaded.context, self._loaded.facts["kv_bytes"]
        cells = context.layouts.pool.cells
        unused = kv_bytes * (cells - context.most_cells) // cells
        return self._loaded.memory | {"parked": parked, "unused": unused}

    @property
    def _embedder(self) -> Any:
        return self._engine

    def _start_answering(self, loaded: Loaded) -> None:
        from uml.workers.backends.llama_cpp.engine import Engine
        from uml.workers.backends.llama_cpp.parking import make_parking
        from uml.workers.backends.llama_cpp.prepare import Preparer
        from uml.workers.backends.llama_cpp.slots import make_slots
        from uml.workers.backends.llama_cpp.template import ChatTemplate

        options, vocab = loaded.options, loaded.vocab
        parking = make_parking(loaded.context, options)
        slots = make_slots(loaded.model, loaded.context, parking)
        self._shelf = parking.shelf
        engine = Engine(
            vocab,
            slots,
            self.outbox,
            options.n_batch,
            lambda: self.threads,
            loaded.pace,
            speculate=options.speculate,
            draft=loaded.draft,
        )
        template = None
        if loaded.template:
            try:
                template = ChatTemplate(
                    loaded.template, vocab.name(vocab.bos), vocab.name(vocab.eos)
                )
            except BadRequest as e:  # completions still work
                self.log("warning", "template_broken", error=e.message)
        engine.start()
        self._engine = engine
        self._preparer = Preparer(
            vocab, template, options.n_ctx, engine.submit, self.outbox.flush, options.seed
        )

    def _start_embedding(self, loaded: Loaded) -> None:
        from uml.workers.backends.llama_cpp.embed import EmbedEngine

        options = loaded.options
        engine = EmbedEngine(
            loaded.context.handle,
            loaded.vocab,
            self.outbox,
            options.n_ctx,
            options.n_batch,
            options.slots,
            lambda: self.threads,
        )
        engine.start()
        self._engine = engine
