"""The decode loop: all running answers and a piece of the waiting prompts in every step.

Threads: one, started by `start`, and only it touches the context. Others leave prepared requests
with `submit` and set `job.cancelled`; both are looked at between steps.

Who is oldest is decided by arrival and never changes. When the pool runs out the youngest gives
its cells back and waits at the head of the queue with all its tokens, so the oldest always ends.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib

from uml.protocol.errors import InternalError, UmlError
from uml.workers.backends.llama_cpp.answer import choose, close
from uml.workers.backends.llama_cpp.batch import Batch, Results
from uml.workers.backends.llama_cpp.gain import Gain
from uml.workers.backends.llama_cpp.guesser import Guesser
from uml.workers.backends.llama_cpp.layout import SETTLED_S, Need
from uml.workers.backends.llama_cpp.options import ALWAYS
from uml.workers.backends.llama_cpp.plan import Pace
from uml.workers.backends.llama_cpp.sequence import Request, Sequence
from uml.workers.backends.llama_cpp.slots import Match, Slots
from uml.workers.backends.llama_cpp.spin import Spin
from uml.workers.backends.llama_cpp.step import Step
from uml.workers.backends.llama_cpp.vocab import Vocab
from uml.workers.base import Outbox

if TYPE_CHECKING:
    from uml.workers.backends.llama_cpp.draft import Draft

#: A prompt somebody else is computing is waited for when that saves so many tokens.
_WORTH_WAITING = 32
#: Cells left free for each running answer when somebody new is let in.
_GROWTH = 16
#: How often readers that hold everything up are asked whether they took something, in seconds.
_BLOCKED_S = 0.005


class Engine:
    """n_batch: rows of a step. threads: how many may compute, asked for every step. pace: of
    prompts, as far as it is known. speculate: see `Options`; draft: guesses, too."""

    def __init__(
        self,
        vocab: Vocab,
        slots: Slots,
        outbox: Outbox,
        n_batch: int,
        threads: Callable[[], int],
        pace: Pace,
        *,
        speculate: bool | str = True,
        draft: Draft | None = None,
    ) -> None:
        self._vocab, self._slots, self._outbox = vocab, slots, outbox
        self._threads, self._pace = threads, pace
        self._gain = Gain(draft.checks if draft else None, always=speculate == ALWAYS)
        guesser = Guesser(slots, self._gain, draft, on=bool(speculate))
        self._next = Step(slots, Batch(n_batch), pace, self._gain, guesser)
        self._results = Results(vocab.size)
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancels = False
        self._queue: deque[Sequence] = deque()
        self._live: list[Sequence] = []  # oldest first
        self._order = self._ends = 0
        self._moved_at = 0.0
        self.steps = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def submit(self, request: Request) -> None:
        """From any thread. The request's tokens fit into the context."""
        with self._wake:
            self._inbox.append(request)
            self._wake.notify()

    def cancel(self) -> None:
        """Some job's `cancelled` was set."""
        with self._wake:
            self._cancels = True
            self._wake.notify()

    @property
    def busy(self) -> int:
        return len(self._live)

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._inbox)

    def _run(self) -> None:
        spin = Spin()
        while True:
            with self._wake:
                while not (self._inbox or self._queue or self._live):
                    self._wake.wait()
            spin.look(time.monotonic())
            try:
                self._step()
            except Exception as e:
                traceback.print_exc()
                self._fail(InternalError(f"the engine failed: {type(e).__name__}: {e}"))
            self._outbox.flush()

    def _step(self) -> None:
        self._collect()
        if self._cancels:
            self._drop_cancelled()
        self._arrange()
        self._admit()
        while (filled := self._next.fill(self._live)) is None:
            self._preempt()
        parts, outputs = filled
        if not parts:
            if self._live:
                with self._wake:
                    if not self._inbox:
                        self._wake.wait(_BLOCKED_S)
            return
        self._slots.context.use_threads(self._threads())
        begin, context, batch = time.monotonic(), self._slots.context.handle, self._next.batch
        status = lib.llama_decode(context, batch.c)
        if status:
            self._refused(status)
            return
        results = sum(1 + len(guess) for _, _, guess in outputs)
        rows = self._results.rows(context, results)  # waits for them
        count, seconds = batch.count, time.monotonic() - begin
        (self._pace if count > results else self._gain).observe(count, seconds)
        self.steps += 1
        for sequence, count in parts:
            sequence.past += count
            self._slots.cells.append(sequence.slot or 0, count)
        k = 0
        for sequence, index, guess in outputs:
            self._answer(sequence, index, guess, rows[k : k + 1 + len(guess)])
            k += 1 + len(guess)
        if not (self._live or self._queue):
            self._slots.save()

    # --- who takes part ---------------------------------------------------------------------

    def _collect(self) -> None:
        while self._inbox:
            request = self._inbox.popleft()
            if request.job.cancelled:
                self._cancels = True
            for sequence in request.sequences:
                sequence.order = self._order
                self._order += 1
                if request.echo:
                    request.job.emit(sequence.index, request.echo)
                if len(sequence.tokens) >= sequence.limit:
                    self._end(sequence, "length")
                else:
                    self._queue.append(sequence)

    def _drop_cancelled(self) -> None:
        self._cancels = False
        for sequence in [*self._live, *self._queue]:
            request = sequence.request
            if request.job.cancelled and not sequence.ended:
                self._end(sequence, "cancelled")
        self._outbox.flush()  # who waits for the slot is not to wait for the next step, too

    def _arrange(self) -> None:
        """Lay the cells out so that all who compute have room for a step, and who waits too as
        far as there are slots. When they cannot all be moved the youngest gives its cells back,
        but only for who computes already."""
        context, slots = self._slots.context, self._slots
        longest = max((len(s.tokens) for s in self._live), default=0)
        if context.layout.column >= longest and not self._queue:
            return
        now = time.monotonic()
        free = context.layouts.pool.sequences - len(self._live)
        needs = [Need(len(s.tokens), s.limit) for s in self._live]
        waiting = [Need(len(s.tokens), s.limit) for s in islice(self._queue, free)]
        settled = now - self._moved_at > SETTLED_S
        layout = context.layouts.choose(context.layout, needs + waiting, settled=settled)
        if layout == context.layout:
            return
        if not slots.movable():
            layout = context.layouts.choose(context.layout, needs, settled=False)
            if layout == context.layout:
                return
            while not slots.movable():
                self._preempt()
        slots.move(layout)
        self._moved_at = now

    def _admit(self) -> None:
        """Let in from the queue, in order, whoever finds a slot and cells. Those who share the
        beginning of a prompt that is being computed wait for it and let others pass."""
        slots, queue = self._slots, self._queue
        if self._live:
            slots.tidy(time.monotonic())
        i = 0
        while i < len(queue) and slots.vacant:
            sequence = queue[i]
            if self._live and sequence.hold > self._ends:
                return
            if self._follows(sequence):
                i += 1
                continue
            match = slots.find(sequence.tokens)
            if not self._live:
                slots.vacate_all(keep=match.slot)
            owner = match.slot.owner if match.slot else None
            if owner is not None and owner.past < match.length:
                if match.length - owner.past >= _WORTH_WAITING:
                    sequence.follows = (owner, match.length)
                    i += 1
                    continue
                match.length = owner.past
            if not self._has_room(sequence, match):
                if self._live:
                    return
                slots.vacate_all()
                match = slots.find(sequence.tokens)
            del queue[i]
            slots.take(sequence, match)
            if sequence.cached is None:
                sequence.cached = sequence.past
            sequence.request.started_at = sequence.request.started_at or time.monotonic()
            self._live.append(sequence)
            self._live.sort(key=_order)

    def _follows(self, sequence: Sequence) -> bool:
        if sequence.follows:
            leader, length = sequence.follows
            if leader.slot is not None and leader.past < length:
                return True
            sequence.follows = None
        return False

    def _has_room(self, sequence: Sequence, match: Match) -> bool:
        if self._slots.divided:
            return len(sequence.tokens) <= self._slots.context.layout.column
        need = len(sequence.tokens) + _GROWTH * len(self._live)
        keep = match.slot if match.slot and match.slot.idle else None
        if match.parked:
            need = max(need, len(match.parked.tokens))
        else:
            need -= match.length
        return self._slots.room(need, keep)

    def _preempt(self) -> None:
        """The youngest gives its cells back; what it computed is parked if it can be."""
        sequence = self._live.pop()
        slot = self._slots.slots[sequence.slot or 0]
        self._slots.release(sequence, time.monotonic())
        if slot.idle:
            self._slots.vacate(slot)
        # Let in again at once it would only push somebody out.
        sequence.hold = self._ends + 1
        self._queue.appendleft(sequence)

    # --- one step ---------------------------------------------------------------------------

    def _answer(self, sequence: Sequence, index: int, guess: list[int], rows: Any) -> None:
        """Choose the tokens that follow, as long as they are the guessed ones."""
        computed, sequence.past = sequence.past, sequence.past - len(guess)
        for i in range(len(guess) + 1):
            try:
                token, reason = choose(
                    self._vocab, self._slots.context.handle, sequence, index + i, rows[i]
                )
            except UmlError as e:  # this one answer's form came to nothing
                sequence.request.job.fail(e)
                sequence.request.job.cancel()
                self._cancels = True
                break
            if i == 0:
                sequence.lookup.judge(token)
            if reason:
                self._end(sequence, reason)
                return
            if i == len(guess) or token != guess[i]:
                break
            sequence.past += 1
            sequence.request.right += 1
        if sequence.past < computed:
            self._slots.forget(sequence)

    def _refused(self, status: int) -> None:
        """llama_decode computed nothing. 1 = no cells, though we counted some (window layers have
        fewer)."""
        if status == 1 and self._slots.vacate_all():
            return
        if status == 1 and len(self._live) > 1:
            self._preempt()
        else:
            raise RuntimeError(f"llama_decode gave {status}")

    # --- ends -------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, reason: str) -> None:
        request = sequence.request
        sequence.ended = True
        self._ends += 1
        if reason != "cancelled":
            reason = close(sequence, reason)
        now = time.monotonic()
        if sequence.slot is not None:
            self._live.remove(sequence)
            self._slots.release(sequence, now)
        elif sequence in self._queue:
            self._queue.remove(sequence)
        sequence.sampler.free()
        request.finish[sequence.index] = reason
        if len(request.finish) == len(request.sequences):
            finish = [request.finish[i] for i in range(len(request.sequences))]
            request.job.finish(finish, request.usage(), request.timings(now))

    def _fail(self, error: UmlError) -> None:
        """Nobody can go on: the library's state is unknown."""
        for sequence in [*self._live, *self._queue]:
            sequence.request.job.fail(error)
            sequence.sampler.free()
        self._live.clear()
        self._queue.clear()
        self._slots.reset()


def _order(sequence: Sequence) -> int:
    return sequence.order
