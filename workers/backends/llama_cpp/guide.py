"""Keeps an answer to a form, token by token: llguidance on llama.cpp's vocabulary.

Threads: `Guides` is used by the preparer alone, a `Guide` by the engine alone.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from functools import cached_property
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.protocol.errors import BadRequest, InternalError
from uml.workers.backends.llama_cpp.vocab import Vocab

#: Compiled forms that are kept: clients ask for the same few again and again.
_KEPT = 16
#: Each state takes 1 to 2 KB; the library's own limit would be half a gigabyte.
_MAX_STATES = 20_000


class Guides:
    """visible: control tokens whose names count as text of the answer."""

    def __init__(self, vocab: Vocab, visible: frozenset[int]) -> None:
        self._vocab, self._visible = vocab, visible
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._mask = np.zeros(-(-vocab.size // 32), np.int32)

    def guide(self, lark: str, param: str) -> Guide:
        """A fresh guide for one answer. lark: llguidance's grammar, which may hold JSON schemas.

        Raises: BadRequest in the library's words.
        """
        matcher = self._compiled.get(lark)
        if matcher is None:
            matcher = self._compile(lark, param)
            self._compiled[lark] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(lark)
        return Guide(matcher.deep_copy(), self._mask, self._vocab.size)

    def _compile(self, lark: str, param: str) -> Any:
        import llguidance

        limits = llguidance.LLParserLimits(max_lexer_states=_MAX_STATES, verbose_errors=False)
        grammar = llguidance.LLMatcher.grammar_from_lark(lark)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            why = matcher.get_error().strip().splitlines()[0]
            raise BadRequest(f"the answer cannot be kept to this form: {why}", param=param)
        return matcher

    @cached_property
    def _tokenizer(self) -> Any:
        """The vocabulary as a trie. Made when the first form is asked for: it takes 0.2 s for
        49,000 tokens, 2 s for 262,000."""
        import llguidance

        return llguidance.LLTokenizer.from_llamacpp(
            tokens=self._texts(),
            vocab_ptr=self._vocab.pointer,
            tokenize_fptr=ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=self._vocab.ends,
        )

    def _texts(self) -> list[bytes]:
        """What each token adds to the answer; 0xff marks those that are no text."""
        return [
            b"\xff" + text if control and token not in self._visible else text
            for token, (text, control) in enumerate(self._vocab.spellings())
        ]


class Guide:
    """Where one answer stands in its form. finished: nothing can follow."""

    def __init__(self, matcher: Any, mask: Any, size: int) -> None:
        self._matcher, self._mask, self._size = matcher, mask, size
        self.finished = False

    def apply(self, row: Any) -> None:
        """Make the logits of tokens that cannot come -inf."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise InternalError(self._why())
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._size)
        np.putmask(row, allowed == 0, -np.inf)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise InternalError(self._why())
        self.finished = self._matcher.is_stopped()

    def _why(self) -> str:
        return f"the answer left its form: {self._matcher.get_error().splitlines()[0]}"
