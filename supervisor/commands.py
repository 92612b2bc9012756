"""What a person orders: load, unload, swap, and what each would do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import Conflict
from uml.supervisor import drafts

if TYPE_CHECKING:
    from uml.supervisor.environments import Environments
    from uml.supervisor.needs import Needs
    from uml.supervisor.pool import Pool
    from uml.supervisor.registry import Model, Registry


class Commands:
    """Holds no state: it feeds the pool's scheduler and waits for what comes of it."""

    def __init__(
        self, pool: Pool, needs: Needs, environments: Environments, registry: Registry
    ) -> None:
        self._pool, self._needs = pool, needs
        self._environments, self._registry = environments, registry

    async def load(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        options: dict[str, Any] | None = None,
        progress: Callable[[str, float | None], None] | None = None,
    ) -> dict[str, Any]:
        """Load `model` and return its worker's status when it is ready. Raises: UmlError."""

        def tell(state: str, fraction: float | None, position: int) -> None:
            if progress:
                progress(state, fraction)

        serving = self._pool.serving
        self._same_draft(model, options)
        while True:
            _, worker = await serving.acquire(
                model, keep_alive_s, options, tell=tell, wants_slot=False, urgent=True
            )
            if not serving.leaves(worker):
                break
        return next(w for w in self._pool.status()["workers"] if w["id"] == worker.id)

    async def unload(self, model_id: str | None, *, force: bool = False) -> list[dict[str, Any]]:
        """Unload one model, or all; waits for running answers unless `force`. Receipts."""
        pool = self._pool
        targets = [
            w
            for w in pool.scheduler.workers.values()
            if w.need and (model_id is None or w.model == model_id)
        ]
        for worker in targets:
            if worker.model:
                pool.feed(pool.scheduler.on_unload(worker.model, pool.now(), force=force))
        receipts = await asyncio.gather(*(pool.crew.receipt(w.id) for w in targets))
        return [r.to_map() for r in receipts]

    async def swap(
        self,
        model: Model,
        *,
        force: bool = False,
        keep_alive_s: float | None = None,
        options: dict[str, Any] | None = None,
        progress: Callable[[str, float | None], None] | None = None,
    ) -> dict[str, Any]:
        """Everything else that is not pinned leaves, `model` comes. Raises: UmlError."""
        pool = self._pool
        started = pool.now()
        # What cannot be loaded at all must not cost the models that are.
        self._needs.need(model, keep_alive_s, options)
        self._same_draft(model, options)
        self._environments.python(model.backend or "")
        leaving = [
            w.id
            for w in pool.scheduler.workers.values()
            if w.need and w.model != model.id and not w.need.pinned
        ]
        pool.feed(pool.scheduler.on_make_way(model.id, pool.now(), force=force))
        status = await self.load(
            model, keep_alive_s=keep_alive_s, options=options, progress=progress
        )
        receipts = await asyncio.gather(*map(pool.crew.receipt, leaving))
        return {
            "model": model.id,
            "receipts": [r.to_map() for r in receipts],
            "load_s": status["load_s"],
            "total_s": round(pool.now() - started, 3),
            "worker": status,
        }

    def _same_draft(self, model: Model, options: Mapping[str, Any] | None) -> None:
        """A loaded model keeps the draft it has. Raises: Conflict when another one is asked for."""
        worker = self._pool.scheduler.worker_of(model.id)
        wanted = (options or {}).get(drafts.KEY)
        if not wanted or worker is None or worker.need is None:
            return
        has = worker.need.options.get(drafts.KEY)
        if self._registry.find(wanted).id != has:
            raise Conflict(
                f"{model.id} is loaded with {has or 'none'} as its {drafts.KEY}; unload it first",
                param=drafts.KEY,
            )

    def plan(
        self, model: Model, *, swap: bool = False, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What a load or swap would do, without doing it."""
        self._pool.measure()
        need, sized = self._needs.need(model, None, options), self._needs.size(model, options)
        fits, victims, why = self._pool.scheduler.plan(need, swap=swap)
        return {
            "model": model.id,
            "fits": fits,
            "need_bytes": need.bytes,
            "victims": victims,
            "load_s": self._registry.load_seconds(model.id),
            "reason": why or need.arithmetic,
            "place": sized.placed.reason,
            "chosen": sized.why,
        }
