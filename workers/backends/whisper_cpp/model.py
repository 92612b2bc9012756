"""A loaded Whisper model: hears one window of at most 30 seconds at a time.

The bindings' low level is used: their `Model` keeps parameters from one call to the next, and
would work through an hour of sound in one go. Source: whisper.cpp's whisper.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import _pywhispercpp as lib
import numpy as np

from uml.protocol.errors import BadRequest, Cancelled, InternalError, InvalidModel
from uml.workers.turns import Turns

_MAGIC = b"lmgg"
#: Audio positions that the warm-up encodes, of 1500 that 30 seconds are.
_WARM_CTX = 64


@dataclass(frozen=True)
class Token:
    """A piece of text. start, end: seconds in the window, where they were asked for."""

    id: int
    data: bytes
    logprob: float
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Heard:
    """A segment. start, end: seconds in the window. tokens: of text, timestamps apart; all_tokens:
    every one's id. logprob: mean of all tokens'."""

    start: float
    end: float
    tokens: list[Token]
    all_tokens: list[int]
    logprob: float

    @property
    def text(self) -> str:
        return b"".join(t.data for t in self.tokens).decode("utf-8", "replace")


@dataclass(frozen=True)
class Wishes:
    """How a window is to be heard. prompt: text before the first one; past: ids of text tokens that
    went before. language: a code, "auto" = found out."""

    language: str = "en"
    translate: bool = False
    temperature: float = 0.0
    times: bool = False
    prompt: str | None = None
    past: list[int] = field(default_factory=list)


class Model:
    """Threads may share it: `hear` is done for one at a time, in order of their coming. threads:
    how many of the library's may compute, asked for every window."""

    def __init__(self, path: str, threads: Callable[[], int]) -> None:
        with open(path, "rb") as f:  # the library takes anything, and crashes later
            if f.read(4) != _MAGIC:
                raise InvalidModel(f"{path} is no whisper.cpp model")
        params = lib.whisper_context_default_params()
        params.use_gpu = False
        self._context = lib.whisper_init_from_file_with_params(path, params)
        self._threads, self._turns = threads, Turns()
        #: Grows while it hears.
        self.moves = 0
        self._text_ctx = lib.whisper_n_text_ctx(self._context)
        self.multilingual = bool(lib.whisper_is_multilingual(self._context))
        self._first_special = lib.whisper_token_eot(self._context)

    def facts(self) -> dict[str, Any]:
        return {
            "type": "stt",
            "arch": "whisper",
            "size": lib.whisper_model_type_readable(self._context),
            "multilingual": self.multilingual,
            "n_audio_ctx": lib.whisper_n_audio_ctx(self._context),
        }

    def warm_up(self) -> None:
        """Hear a moment of nothing: a library built for another processor dies here."""
        params = self._params(Wishes())
        params.audio_ctx, params.max_tokens, params.single_segment = _WARM_CTX, 1, True
        params.temperature_inc = 0.0
        self._run(params, np.zeros(16000, np.float32))

    def language_id(self, code: str) -> int:
        """Negative for one that Whisper does not know."""
        return int(lib.whisper_lang_id(code))

    def hear(
        self, window: np.ndarray[Any, Any], wishes: Wishes, stopped: Callable[[], bool]
    ) -> tuple[list[Heard], str]:
        """(segments, language code) of at most 30 seconds of 16 kHz float32.

        Raises: Cancelled, when `stopped` says so meanwhile (the library looks at it between two
        tokens, and after each half of a window's first look).
        """
        with self._turns.mine(stopped):
            params = self._params(wishes)
            encoded = 0

            def one_look(*_: Any) -> bool:
                """The library would go on from the last segment's end; we do, with more sound."""
                nonlocal encoded
                encoded += 1
                return encoded == 1

            params.set_encoder_begin_callback(one_look)
            params.set_abort_callback(lambda: self._leave_off(stopped))
            status = self._run(params, window)
            if stopped():
                raise Cancelled("the transcription was cut")
            if status:
                raise InternalError(f"whisper.cpp failed ({status})")
            language = lib.whisper_lang_str(lib.whisper_full_lang_id(self._context))
            return self._segments(times=wishes.times), language

    def _leave_off(self, stopped: Callable[[], bool]) -> bool:
        self.moves += 1
        return stopped()

    def _params(self, wishes: Wishes) -> Any:
        params = lib.whisper_full_default_params(
            lib.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY
        )
        params.print_progress = False
        params.n_threads = self._threads()
        params.no_context = True
        params.language = wishes.language
        params.translate = wishes.translate
        params.temperature = wishes.temperature
        if wishes.temperature:
            params.temperature_inc = 0.0
        params.token_timestamps = wishes.times
        if wishes.past:
            params.set_prompt_tokens(wishes.past[-(self._text_ctx // 2) :])
        elif wishes.prompt:
            params.initial_prompt = wishes.prompt
        return params

    def _run(self, params: Any, window: np.ndarray[Any, Any]) -> int:
        return int(lib.whisper_full(self._context, params, window, len(window)))

    def _segments(self, *, times: bool) -> list[Heard]:
        context, found = self._context, []
        for i in range(lib.whisper_full_n_segments(context)):
            tokens, ids, logprobs = [], [], []
            for j in range(lib.whisper_full_n_tokens(context, i)):
                data = lib.whisper_full_get_token_data(context, i, j)
                ids.append(data.id)
                logprobs.append(data.plog)
                if data.id < self._first_special:
                    text = lib.whisper_token_to_bytes(context, data.id)
                    span = (data.t0 / 100, data.t1 / 100) if times else (0.0, 0.0)
                    tokens.append(Token(data.id, text, data.plog, *span))
            start = lib.whisper_full_get_segment_t0(context, i) / 100
            end = lib.whisper_full_get_segment_t1(context, i) / 100
            mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
            found.append(Heard(start, end, tokens, ids, mean))
        return found


def check_language(model: Model, code: str | None) -> str:
    """What `Wishes.language` shall be. Raises: BadRequest."""
    if not model.multilingual:
        if code not in (None, "en"):
            raise BadRequest(
                f"this model hears English alone, not {code!r}: use one without .en in its name",
                param="language",
            )
        return "en"
    if code is not None and model.language_id(code) < 0:
        raise BadRequest(f"language {code!r} is none that Whisper knows", param="language")
    return code or "auto"
