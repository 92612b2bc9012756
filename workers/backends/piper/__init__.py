"""Text to speech by Piper (piper-tts), whose licence is GPL-3.0: it stays in its own process."""

from uml.workers.backends.piper.backend import Piper

__all__ = ["Piper"]
