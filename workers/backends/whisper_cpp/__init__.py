"""Speech to text by whisper.cpp (pywhispercpp)."""

from uml.workers.backends.whisper_cpp.backend import WhisperCpp

__all__ = ["WhisperCpp"]
