"""Text to tokens and back, by the model's own vocabulary. Thread-safe, as llama.cpp's is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import llama_cpp.llama_cpp as lib

from uml.protocol.errors import BadRequest


class Vocab:
    """vocab: llama.cpp's pointer."""

    def __init__(self, vocab: Any) -> None:
        self.pointer = vocab
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(vocab))
        self.adds_eos = bool(lib.llama_vocab_get_add_eos(vocab))
        self.bos: int = lib.llama_vocab_bos(vocab)
        self.eos: int = lib.llama_vocab_eos(vocab)
        self._plain: dict[int, bytes] = {}
        self._special: dict[int, bytes] = {}
        self._is_end: dict[int, bool] = {}
        self.suppressed = self._suppressed()

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return [token for token in range(self.size) if self.is_end(token)]

    def is_end(self, token: int) -> bool:
        found = self._is_end.get(token)
        if found is None:
            found = self._is_end[token] = bool(lib.llama_vocab_is_eog(self.pointer, token))
        return found

    def tokens(
        self, text: str, *, add_special: bool = False, special: bool = False, closed: bool = False
    ) -> list[int]:
        """Token ids of `text`. add_special: with BOS as the model wants it; a closing EOS, which
        some vocabularies add, only if `closed`: otherwise somebody is going to continue. special:
        markers like `<|im_start|>` count as the tokens they name."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            n = lib.llama_tokenize(self.pointer, data, len(data), ids, room, add_special, special)
            if n >= 0:
                break
            room = -n
        out: list[int] = ids[:n]
        if add_special and not closed and self.adds_eos and out and out[-1] == self.eos:
            out.pop()
        return out

    def piece(self, token: int) -> bytes:
        """What a token adds to the text; control tokens add nothing."""
        found = self._plain.get(token)
        if found is None:
            found = self._plain[token] = self._piece(token, False)
        return found

    def marked(self, token: int) -> bytes:
        """Like `piece`, with control tokens as their names."""
        found = self._special.get(token)
        if found is None:
            found = self._special[token] = self._piece(token, True)
        return found

    def spellings(self) -> Iterator[tuple[bytes, bool]]:
        """Every token in order: what `marked` says, and whether it is a control token."""
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        size = 1024
        buffer = ctypes.create_string_buffer(size)
        for token in range(self.size):
            n = lib.llama_token_to_piece(self.pointer, token, buffer, size, 0, True)
            text = ctypes.string_at(buffer, n) if n >= 0 else self._piece(token, True)
            yield text, bool(lib.llama_vocab_get_attr(self.pointer, token) & hidden)

    def name(self, token: int) -> str:
        """The text of a control token, "" for none (-1)."""
        return self.marked(token).decode("utf-8", "replace") if token >= 0 else ""

    def text(self, tokens: list[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def check(self, tokens: list[Any], param: str) -> list[int]:
        """Raises: BadRequest when one of the ids is not of this vocabulary."""
        for token in tokens:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.size:
                raise BadRequest(
                    f"{param} holds {str(token)[:40]}, which is no token id from 0 to"
                    f" {self.size - 1}",
                    param=param,
                )
        return tokens

    def infill(self, prefix: str, suffix: str) -> list[int]:
        """The prompt that asks for what stands between. Raises: BadRequest when the model has
        no tokens for it."""
        marks = [
            mark(self.pointer)
            for mark in (lib.llama_vocab_fim_pre, lib.llama_vocab_fim_suf, lib.llama_vocab_fim_mid)
        ]
        if min(marks) < 0:
            raise BadRequest("this model cannot fill in: it has no tokens for it", param="suffix")
        pre, suf, mid = marks
        start = [self.bos] if self.adds_bos and self.bos >= 0 else []
        return [*start, pre, *self.tokens(prefix), suf, *self.tokens(suffix), mid]

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def _suppressed(self) -> list[int]:
        count = ctypes.c_int32()
        ids = lib.llama_vocab_get_suppress_tokens(self.pointer, ctypes.byref(count))
        return [int(ids[i]) for i in range(count.value)]
