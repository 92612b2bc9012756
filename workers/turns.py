"""Jobs of one worker that take turns at what they share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uml.protocol.errors import Cancelled


class Turns:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def mine(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Raises: Cancelled, when it is not wanted any more."""
        ticket = object()
        with self._moved:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket:
                    if stopped():
                        raise Cancelled("cut while it waited for its turn")
                    self._moved.wait(0.1)
            except BaseException:
                self._leave(ticket)
                raise
        try:
            yield
        finally:
            with self._moved:
                self._leave(ticket)

    def _leave(self, ticket: object) -> None:
        self._line.remove(ticket)
        self._moved.notify_all()
