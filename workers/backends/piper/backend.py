"""What the host sees of Piper: `Piper`. Imports the library only when asked to."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

from uml.protocol.errors import BadRequest
from uml.protocol.messages import Load, Ready
from uml.protocol.tasks import Speak
from uml.workers.base import Backend, Delta, Job, Progress

if TYPE_CHECKING:
    from uml.workers.backends.piper.voice import Voice

_SLOTS = 4
_WARM_UP = "Hello."


class Piper(Backend):
    name: ClassVar[str] = "piper"
    _voice: Voice

    def versions(self) -> dict[str, str]:
        import av
        import onnxruntime
        import piper  # noqa: F401

        return {
            "piper-tts": importlib.metadata.version("piper-tts"),
            "onnxruntime": onnxruntime.__version__,
            "av": av.__version__,
        }

    def load(self, load: Load, progress: Progress) -> Ready:
        from uml.workers.backends.piper.voice import Voice

        progress("weights", None)
        self._voice = Voice(load.files[0], load.threads)
        progress("warm-up", None)
        for _ in self._voice.speak(_WARM_UP, None, 1.0):
            pass
        slots = int(load.options.get("slots") or _SLOTS)
        return Ready(slots=slots, facts=self._voice.facts(), memory={})

    def speak(self, job: Job) -> Generator[Delta, None, dict[str, Any]]:
        """A piece of the file after each sentence."""
        from uml.workers.sound.encode import FORMATS, Encoder

        task = job.task
        assert isinstance(task, Speak)
        if task.format not in FORMATS:
            raise BadRequest(f"{task.format!r} is none of {', '.join(FORMATS)}")
        voice, count = self._voice, 0
        encoder = Encoder(task.format, voice.rate)
        try:
            for samples in voice.speak(task.text, task.voice, task.speed, lambda: job.cancelled):
                count += len(samples)
                if data := encoder.write(samples):
                    yield data
            if not count:
                raise BadRequest("there is nothing in the text that can be spoken", param="input")
            if data := encoder.end():
                yield data
        finally:
            encoder.close()
            voice.tidy()
        return {"duration": round(count / voice.rate, 3), "characters": len(task.text)}
