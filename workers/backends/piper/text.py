"""Text in pieces that can be spoken one after the other: pure.

Where a sentence ends, how numbers and abbreviations are read, is espeak's to say. Here a long text
is only cut where it surely may be, so that its first words are heard soon, and a sentence without
an end is cut where one would draw breath.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

#: Characters that espeak is given at once, roughly.
_BLOCK = 1000
#: The first block: its first sentence is waited for.
_FIRST_BLOCK = 300
#: A sentence's end that is no abbreviation's: two lower-case letters before it, a capital after;
#: or an ideographic stop.
_END = re.compile(
    r"(?<=[a-z][a-z])[.!?\u2026]+[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|(?<=[\u3002\uff01\uff1f])"
)
_LINES = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")
#: Phonemes of one run of the network, some 8 seconds: each takes megabytes, and time
#: until the first is heard.
MOST_PHONEMES = 160
_PAUSES = (frozenset(";:.!?—"), frozenset(","), frozenset(" "))


def blocks(text: str) -> Iterator[str]:
    """The text in pieces of some hundred characters, none without a word."""
    most = _FIRST_BLOCK
    for paragraph in _LINES.split(text):
        rest = _SPACE.sub(" ", paragraph).strip()
        while rest:
            cut = _cut(rest, most) if len(rest) > most else len(rest)
            yield rest[:cut]
            rest = rest[cut:].lstrip()
            most = _BLOCK


def _cut(text: str, most: int) -> int:
    """Where to cut: at the last sure end before `most`, else the first one after it, if it is near;
    else at a space."""
    ends = [match.end() for match in _END.finditer(text, 0, 2 * most)]
    before = [end for end in ends if 0 < end <= most]
    if before:
        return before[-1]
    if ends and ends[0] > 0:
        return ends[0]
    space = text.rfind(" ", 0, 2 * most)
    return space if space > 0 else min(len(text), 2 * most)


def breaths(phonemes: Sequence[str], most: int = MOST_PHONEMES) -> Iterator[Sequence[str]]:
    """One sentence's phonemes in runs of at most `most`, cut at pauses, else between words."""
    start = 0
    while len(phonemes) - start > most:
        end = start + most
        for pauses in _PAUSES:
            found = next(
                (i for i in range(end - 1, start + most // 3, -1) if phonemes[i] in pauses), None
            )
            if found is not None:
                end = found + 1
                break
        yield phonemes[start:end]
        start = end
    if start < len(phonemes):
        yield phonemes[start:]
