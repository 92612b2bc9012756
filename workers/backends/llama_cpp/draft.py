"""A draft model: a second, small one in this process that guesses what the first will say.

It has a context and cells of its own, kept by a `Slots` like the model's. A `Follower` is what it
has computed of an answer; guesses that did not stand are cut off when it is asked again. The first
guess for an answer waits until the text so far is read: a piece with each step, as of prompts.

Which guesses stand is for the model's own sampler to say, so answers are what they would be anyway.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import llama_cpp.llama_cpp as lib

from uml.protocol.errors import LoadFailed
from uml.protocol.messages import Load
from uml.workers.backends.llama_cpp.batch import Batch, Results
from uml.workers.backends.llama_cpp.context import Context
from uml.workers.backends.llama_cpp.gain import FADE_HITS, MOST, SIZES, Offer, Times
from uml.workers.backends.llama_cpp.layout import Layouts
from uml.workers.backends.llama_cpp.load import (
    FASTER,
    Progress,
    context_params,
    load_model,
)
from uml.workers.backends.llama_cpp.log import Log
from uml.workers.backends.llama_cpp.options import Options
from uml.workers.backends.llama_cpp.parking import make_parking
from uml.workers.backends.llama_cpp.plan import Pace
from uml.workers.backends.llama_cpp.sequence import Sequence
from uml.workers.backends.llama_cpp.slots import Slots, make_slots
from uml.workers.backends.llama_cpp.vocab import Vocab

#: How often guesses of a draft are thought to be right before any were judged, and how many
#: judgements that is worth.
_HOPE, _HOPED = 0.7, 4


@dataclass(eq=False)
class Follower:
    """What the draft has computed of an answer: the first `past` of its tokens are in the draft's
    cells, then those of `guess` but the last. hits: how often its guesses are right, lately."""

    tokens: list[int]
    hits: float
    past: int = 0
    slot: int | None = None
    #: The latest guess, and how many tokens there were before it.
    guess: list[int] = field(default_factory=list)
    asked_at: int = 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.past


class Draft:
    """slots: of the draft's own context. n_batch: rows of a step. threads: how many may compute,
    asked for every step. times, checks: of steps of the draft, and of its model, as far as they are
    known. Used by the decode loop alone."""

    def __init__(
        self,
        slots: Slots,
        width: int,
        n_batch: int,
        threads: Callable[[], int],
        times: Times,
        checks: Times,
    ) -> None:
        self._slots, self._threads = slots, threads
        self._times, self.checks = times, checks
        self._pace = Pace(FASTER / max(times.at_most(1), 1e-6))
        self._batch, self._results = Batch(n_batch), Results(width)
        self._followers: dict[Sequence, Follower] = {}
        #: As a follower's; of all of them.
        self._hits, self._judged = _HOPE, 0
        self._broken = False

    def offer(self, ready: list[Sequence]) -> Offer:
        """For all of `ready`, or for none of them where its cells do not hold their texts."""
        self._leave(ready)
        needed = sum(len(s.tokens) + MOST for s in ready)
        if self._broken or needed > self._slots.cells.total:
            return Offer([])
        for follower in self._followers.values():
            self._judge(follower)
        followers = [self._followers.get(s) or self._follow(s) for s in ready]
        behind = sum(f.pending for f in followers) - 2 * len(ready)
        return Offer(
            [f.hits for f in followers],
            self._times.at_most(len(ready)),
            max(0, behind) / self._pace.rate,
            known=False,
        )

    def guess(self, sizes: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """So many tokens for each, of those that were offered; none yet while it still reads."""
        followers = {s: self._followers[s] for s, size in sizes.items() if size > 0}
        self._slots.tidy(time.monotonic())
        try:
            if not self._read(list(followers.values())):
                return {}
            for turn in range(max(sizes.values())):
                self._turn([f for s, f in followers.items() if sizes[s] > turn])
        except RuntimeError as e:  # answers go on without it
            print(f"the draft model failed: {e}", file=sys.stderr, flush=True)
            self._followers.clear()
            self._slots.reset()
            self._broken = True
            return {}
        return {s: list(f.guess) for s, f in followers.items()}

    # --- what it follows --------------------------------------------------------------------

    def _leave(self, ready: list[Sequence]) -> None:
        """Let go of answers that are not among `ready`; their cells wait for a next turn."""
        now = time.monotonic()
        for sequence in self._followers.keys() - set(ready):
            follower = self._followers.pop(sequence)
            self._judge(follower)
            self._slots.release(follower, now)

    def _follow(self, sequence: Sequence) -> Follower:
        follower = self._followers[sequence] = Follower(sequence.tokens, self._hits)
        match = self._slots.find(follower.tokens)
        if match.slot and match.slot.owner:
            match.length = min(match.length, match.slot.owner.past)
        self._slots.take(follower, match)
        return follower

    def _judge(self, follower: Follower) -> None:
        """How much of the latest guess stood: that much is computed."""
        guess, said = follower.guess, follower.tokens[follower.asked_at :]
        if not guess:
            return
        right = 0
        while right < min(len(guess), len(said)) and guess[right] == said[right]:
            right += 1
        for i in range(min(right + 1, len(guess), len(said))):
            self._judged += 1
            weight = max(FADE_HITS, 1 / (_HOPED + self._judged))
            follower.hits += weight * ((i < right) - follower.hits)
            self._hits += weight * ((i < right) - self._hits)
        follower.past = follower.asked_at + min(right, len(guess) - 1)
        follower.guess = []
        self._slots.forget(follower)

    # --- computing --------------------------------------------------------------------------

    def _read(self, followers: list[Follower]) -> bool:
        """Whether they are nearly at the end of their texts; if not, a piece of them was read."""
        most = min(self._pace.chunk(len(followers), 0), self._batch.capacity - len(followers))
        if sum(f.pending - 1 for f in followers) <= most:
            return True
        self._batch.clear()
        for f in followers:
            count = min(f.pending - 1, most)
            if count > 0:
                self._add(f, f.tokens[f.past : f.past + count], f.past, output=False)
                f.past += count
                most -= count
        self._compute(0)
        return False

    def _turn(self, followers: list[Follower]) -> None:
        """One token more for each."""
        self._batch.clear()
        for f in followers:
            if f.guess:
                self._add(f, f.guess[-1:], f.past + len(f.guess) - 1, output=True)
            else:
                f.asked_at = len(f.tokens)
                self._add(f, f.tokens[f.past :], f.past, output=True)
                f.past = f.asked_at
        rows = self._compute(len(followers))
        for f, token in zip(followers, rows.argmax(axis=1).tolist(), strict=True):
            f.guess.append(token)

    def _add(self, follower: Follower, tokens: list[int], position: int, *, output: bool) -> None:
        slot = follower.slot or 0
        self._batch.run(tokens, position, slot, output=output)
        if not self._slots.room(len(tokens)):
            raise RuntimeError("it has no cells left")
        self._slots.cells.append(slot, len(tokens))

    def _compute(self, outputs: int) -> Any:
        """Rows of results. Raises: RuntimeError."""
        context, rows = self._slots.context, self._batch.count
        context.use_threads(self._threads())
        begin = time.monotonic()
        if status := lib.llama_decode(context.handle, self._batch.c):
            raise RuntimeError(f"llama_decode gave {status}")
        found = self._results.rows(context.handle, outputs)
        seconds = time.monotonic() - begin
        if rows == outputs:
            self._times.observe(rows, seconds)
        else:
            self._pace.observe(rows, seconds)
        return found


def timed(context: Context, token: int, *counts: int) -> Times:
    """How long steps of so many rows take, each tried once. Raises: LoadFailed."""
    batch, times = Batch(max(counts)), Times()
    for count in counts:
        batch.clear()
        batch.run([token] * count, 0, 0, output=True, every=True)
        begin = time.monotonic()
        if status := lib.llama_decode(context.handle, batch.c):
            raise LoadFailed(f"the draft model loads but does not decode (status {status})")
        lib.llama_synchronize(context.handle)
        times.observe(count, time.monotonic() - begin)
        lib.llama_memory_clear(context.memory, True)
    return times


def load(
    request: Load,
    options: Options,
    beside: Context,
    vocab: Vocab,
    log: Log,
    progress: Progress,
    threads: Callable[[], int],
) -> Draft:
    """The draft that `options` name; it has decoded a token. beside, vocab: of the model for which
    it guesses; how long that takes to check guesses is measured, so that it is known from the first
    answer on what pays.

    Raises: LoadFailed.
    """
    given = {"n_gpu_layers": -1 if options.n_gpu_layers else 0, "tensor_split": None, "arch": None}
    own = dataclasses.replace(
        request, files=list(options.draft_files), options={**request.options, **given}
    )
    model = load_model(own, log, progress, "draft")
    name = options.draft_files[0]
    if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
        raise LoadFailed(f"{name} cannot be a draft: a recurrent model takes no token back")
    others = Vocab(lib.llama_model_get_vocab(model))
    options = dataclasses.replace(
        options, kv_cells=options.draft_cells, prefix_cache_bytes=0, conversations_dir=None
    )
    layouts = Layouts(options.kv_cells, options.slots, elastic=False)
    context = Context(model, context_params(options, request, False, 0), layouts, log.why)
    token = max(others.bos, 0)
    timed(context, token, 1)  # reads the weights
    counts = [1 + size for size in SIZES if size < options.slots]
    return Draft(
        make_slots(model, context, make_parking(context, options)),
        others.size,
        options.n_batch,
        threads,
        timed(context, token, 1),
        timed(beside, max(vocab.bos, 0), 1, *counts),
    )
