"""Guesses from the text so far: what followed the last tokens before may follow again. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from uml.workers.backends.llama_cpp.gain import FADE_HITS, MOST

#: Tokens that have to agree before what followed them is guessed to follow again.
_AGREE = 3


class Lookup:
    """Guesses by looking up where the last tokens of an answer stood before."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._seen = 0
        self._last: dict[tuple[int, ...], int] = {}
        #: How often the first guessed token was right, lately.
        self.hits = 0.0
        self._guessed: int | None = None

    def guess(self) -> list[int]:
        """What may follow the tokens so far, at most `MOST`; remembered until `judge`."""
        tokens, length = self._tokens, len(self._tokens)
        for end in range(max(self._seen, _AGREE), length):
            self._last[tuple(tokens[end - _AGREE : end])] = end
        self._seen = length
        at = self._last.get(tuple(tokens[length - _AGREE :])) if length > _AGREE else None
        found = list(tokens[at : at + MOST]) if at is not None else []
        self._guessed = found[0] if found else None
        return found

    def judge(self, token: int) -> None:
        """`token` is what followed."""
        if self._guessed is not None:
            self.hits += FADE_HITS * ((token == self._guessed) - self.hits)
            self._guessed = None
