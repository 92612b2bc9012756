"""Brings back models that left without anybody's wish: pinned ones whose worker failed, and those
that were restarted for a new configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uml.protocol.errors import LoadFailed, ShuttingDown, UmlError, Unavailable, WorkerDied

if TYPE_CHECKING:
    from uml.supervisor.pool import Pool
    from uml.supervisor.registry import Registry


class Keeper:
    """Owner of loads that nobody waits for."""

    def __init__(self, pool: Pool, registry: Registry) -> None:
        self._pool, self._registry = pool, registry
        self._loading: dict[str, asyncio.Task[None]] = {}

    def failed(self, model_id: str, error: UmlError) -> None:
        """A model's worker failed and is gone: a pinned one comes back at once, or, while it is
        left alone for failing again and again, as soon as that is over."""
        if self._pool.config.for_model(model_id).pinned:
            self.load(model_id, f"it is pinned and failed: {error.message}", pinned=True)

    def load(self, model_id: str, reason: str, *, pinned: bool = False) -> None:
        """Load a model in the background. pinned: try until it stays, or is pinned no more."""
        if model_id not in self._loading:
            self._pool.events.emit("model.restarting", model=model_id, reason=reason)
            task = asyncio.create_task(self._load(model_id, pinned))
            self._loading[model_id] = task
            task.add_done_callback(lambda _: self._loading.pop(model_id, None))

    async def _load(self, model_id: str, pinned: bool) -> None:
        pool = self._pool
        while True:
            try:
                await pool.serving.acquire(
                    self._registry.find(model_id),
                    None,
                    None,
                    tell=lambda state, fraction, position: None,
                    wants_slot=False,
                )
                return
            except ShuttingDown:
                return
            except UmlError as e:
                again = isinstance(e, (LoadFailed, WorkerDied, Unavailable))
                if not (pinned and again and pool.config.for_model(model_id).pinned):
                    pool.events.emit(
                        "model.not_restarted", "error", model=model_id, cause=e.message
                    )
                    return
                await asyncio.sleep(_pause(e))

    async def close(self) -> None:
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)


def _pause(error: UmlError) -> float:
    """Seconds until the next try: at once, unless the model is left alone or there is no room."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    return 1.0 if isinstance(error, Unavailable) else 0.0
