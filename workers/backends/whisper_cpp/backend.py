"""What the host sees of whisper.cpp: `WhisperCpp`. Imports the library only when asked to."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

from uml.protocol.messages import Load, Ready
from uml.protocol.tasks import Transcribe
from uml.workers.base import Backend, Delta, Job, Progress

if TYPE_CHECKING:
    from uml.workers.backends.whisper_cpp.model import Model

_SLOTS = 4


class WhisperCpp(Backend):
    """Requests take turns, a window of at most 30 seconds of sound each: a short one does not wait
    until an hour of somebody else's is through, and the model is in memory once."""

    name: ClassVar[str] = "whisper_cpp"
    _model: Model | None = None

    def versions(self) -> dict[str, str]:
        import _pywhispercpp  # noqa: F401
        import av

        return {"pywhispercpp": importlib.metadata.version("pywhispercpp"), "av": av.__version__}

    def load(self, load: Load, progress: Progress) -> Ready:
        from uml.workers.backends.whisper_cpp.model import Model

        progress("weights", None)
        model = Model(load.files[0], lambda: self.threads)
        progress("warm-up", None)
        model.warm_up()
        self._model = model
        slots = int(load.options.get("slots") or _SLOTS)
        return Ready(slots=slots, facts=model.facts(), memory={})

    def stats(self) -> tuple[int, int, int]:
        busy, queued, progress = super().stats()
        return busy, queued, progress + (self._model.moves if self._model else 0)

    def transcribe(self, job: Job) -> Generator[Delta, None, dict[str, Any]]:
        from uml.workers.backends.whisper_cpp.transcribe import transcribe

        task = job.task
        assert isinstance(task, Transcribe) and self._model
        return (yield from transcribe(self._model, task, lambda: job.cancelled))
