"""From a row of logits to what a reader sees of an answer."""

from __future__ import annotations

import time
from typing import Any

from uml.workers.backends.llama_cpp.logprobs import describe
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.vocab import Vocab


def choose(
    vocab: Vocab, context: Any, sequence: Sequence, index: int, row: Any
) -> tuple[int, str | None]:
    """Choose the next token and show its text; (token, why the answer ends with it or None).
    index: of the row in the batch; row: its logits."""
    request = sequence.request
    top = request.top_logprobs
    entry = None if top is None else describe(vocab, row, top)
    token = sequence.sampler.pick(context, index, row)
    if request.first_at is None:
        request.first_at = time.monotonic()
    if request.ends and vocab.is_end(token):
        return token, "stop"
    sequence.tokens.append(token)
    piece = vocab.marked(token) if token in request.marks else vocab.piece(token)
    if entry is not None:
        start = sequence.bytes_in
        sequence.bytes_in = start + len(piece)
        sequence.entries.append((start, sequence.bytes_in, entry(token)))
    text = sequence.stream.feed(piece)
    if text or entry is not None:
        _show(sequence, sequence.reply.feed(text))
    if sequence.stream.stopped or sequence.sampler.finished:
        return token, "stop"
    return token, "length" if len(sequence.tokens) >= sequence.limit else None


def close(sequence: Sequence, reason: str) -> str:
    """Show what was held back; the reason as the client is told it."""
    _show(sequence, sequence.reply.feed(sequence.stream.end()) + sequence.reply.end(), last=True)
    return sequence.reply.finish(reason)


def _show(sequence: Sequence, deltas: list[Any], last: bool = False) -> None:
    job, taken = sequence.request.job, sequence.stream.taken
    entries = []
    while sequence.entries:
        start, end, entry = sequence.entries[0]
        if end > taken and not (last and start < taken):
            break
        sequence.entries.popleft()
        entries.append(entry)
    for delta in deltas:
        if entries and isinstance(delta, str):
            delta, entries = {"text": delta, "logprobs": entries}, []
        job.emit(sequence.index, delta)
    if entries:
        job.emit(sequence.index, {"text": "", "logprobs": entries})
