"""Runs what the scheduler decides.

The scheduler is pure, the crew owns the processes, `serving` sees requests through; here is the
clock. Every event goes through `feed`, which carries out the actions that come back. All of it
belongs to the event loop's thread, so there are no locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uml.protocol import messages
from uml.protocol.errors import Cancelled, UmlError
from uml.protocol.models import BackendSpec
from uml.supervisor import states
from uml.supervisor.breaker import Failing
from uml.supervisor.budget import Budget
from uml.supervisor.commands import Commands
from uml.supervisor.config import AUTO
from uml.supervisor.conversations import Conversations
from uml.supervisor.crew import Crew
from uml.supervisor.events import Events
from uml.supervisor.failures import Failures
from uml.supervisor.footprints import Footprints
from uml.supervisor.hearing import Hearing
from uml.supervisor.keeper import Keeper
from uml.supervisor.machine import Machine, oom_kills
from uml.supervisor.needs import Needs
from uml.supervisor.pressure import Pressure
from uml.supervisor.profiles import Profiles
from uml.supervisor.scheduler import Scheduler
from uml.supervisor.serving import Serving
from uml.supervisor.usage import Usage
from uml.supervisor.watch import Watch

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.environments import Environments
    from uml.supervisor.registry import Registry


def _endless(seconds: float) -> float:
    """In a configuration below zero means without limit."""
    return seconds if seconds >= 0 else math.inf


class Pool:
    """Owner of timers and kills under way; `serving` and `commands` are what it can be asked."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        environments: Environments,
        specs: Mapping[str, BackendSpec],
        machine: Machine,
        events: Events,
    ) -> None:
        self._config, self._registry, self._specs = config, registry, specs
        self._machine, self._events = machine, events
        self.conversations = Conversations(config.home, config.conversations_bytes)
        self.scheduler = Scheduler(
            Budget(config.budget, config.reserve_bytes), self._limits(config)
        )
        self.footprints = Footprints(registry, environments.version)
        self._needs = Needs(
            config,
            registry,
            specs,
            machine,
            self.conversations,
            self.footprints,
            environments.devices,
            self.scheduler.room,
            self.scheduler.price,
        )
        registry.best = self._needs.best
        self.crew = Crew(config.home, environments, machine, events)
        self.failures = Failures(self, self._needs)
        self.serving = Serving(
            self, self._needs, environments, registry, self.failures.ignores_cancel
        )
        self.commands = Commands(self, self._needs, environments, registry)
        self.profiles = Profiles(
            config, registry, self._needs, self.scheduler, self.commands, self.measure
        )
        self._calls = self.serving.calls
        self.hearing = Hearing(self, registry)
        self.usage = Usage(config.home / "registry.sqlite", self.now)
        self.keeper = Keeper(self, registry)
        self.pressure = Pressure(self)
        self._watch = Watch(self)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._kills: dict[str, asyncio.Task[None]] = {}

    # --- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """End what an earlier supervisor left, measure, and watch."""
        await self.crew.clear_up()
        self.measure()
        self.feed(self.scheduler.on_started(self.now()))
        self._watch.start()

    async def close(self, deadline_s: float | None = None) -> None:
        """Refuse what waits, let running answers finish until `deadline_s`, then kill all."""
        self.feed(self.scheduler.on_shutdown(self.now()))
        await self.keeper.close()
        if deadline_s is None or deadline_s > 0:
            await self._all_gone(deadline_s)
        self.feed(self.scheduler.on_shutdown(self.now(), force=True))
        await self._all_gone(None)
        if self._kills:  # what is left of them is to be written
            await asyncio.wait(self._kills.values())
        await self.serving.read_ahead.close()
        self._watch.stop()
        await self.usage.close()
        for timer in self._timers.values():
            timer.cancel()

    async def _all_gone(self, deadline_s: float | None) -> None:
        end = None if deadline_s is None else self.now() + deadline_s
        while self.scheduler.workers and (end is None or self.now() < end):
            if self._kills:
                await asyncio.wait(self._kills.values(), timeout=0.05)
            else:
                await asyncio.sleep(0.02)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def configure(self, config: Config, restarts: Mapping[str, list[str]]) -> None:
        """Go on with another configuration, which the registry has taken in already. restarts:
        models whose workers are not what it says, with the settings that differ."""
        self._config, self.conversations.limit = config, config.conversations_bytes
        self._needs.configure(config)
        self.profiles.configure(config)
        self.scheduler.budget.limit(config.budget, config.reserve_bytes)
        self.feed(
            self.scheduler.on_configured(self._limits(config), self._needs.adjusted, self.now())
        )
        for model, settings in restarts.items():
            reason = f"its configuration changed: {', '.join(settings)}"
            serves = self.scheduler.worker_of(model) is not None
            renewed = self.serving.renewed(model)
            self.feed(self.scheduler.on_changed(model, renewed, reason, self.now()))
            if serves:
                self.keeper.load(model, reason)

    def _limits(self, config: Config) -> states.Limits:
        kept = (name for name in config.standby if name in self._specs)
        return states.Limits(
            max_loaded=config.max_loaded,
            cores=config.cores or self._machine.cores,
            queue=config.queue_limit,
            max_wait_s=_endless(config.max_wait_s),
            min_residency_s=max(0.0, config.min_residency_s),
            standby={name: {"ram": self._specs[name].process_bytes} for name in kept},
            standby_auto=AUTO in config.standby,
        )

    # --- carrying out ----------------------------------------------------------------------

    def feed(self, actions: list[states.Action]) -> None:
        for action in actions:
            match action:
                case states.Spawn():
                    self._spawn(action)
                case states.Prepare():
                    if model := self.serving.models.get(action.model):
                        files = list(model.file.paths)
                        self.crew.workers[action.worker].send(messages.Prepare(files))
                case states.Load():
                    self._load(action)
                case states.Threads():
                    self.crew.workers[action.worker].send(messages.Threads(action.threads))
                case states.Kill():
                    task = asyncio.create_task(self._kill(action.worker, action.reason))
                    self._kills[action.worker] = task
                case states.Grant():
                    self.serving.grant(action.request, action.worker)
                case states.Refuse():
                    self._refuse(action)
                case states.SetTimer():
                    self._set_timer(action)
                case states.Tell():
                    self._events.emit(action.event, **action.fields)

    def _refuse(self, action: states.Refuse) -> None:
        model = self.serving.refuse(action.request, action.error)
        if model:
            self._events.emit(
                "request.refused",
                "warning",
                model=model,
                code=action.error.code,
                reason=action.error.message,
            )

    def _set_timer(self, action: states.SetTimer) -> None:
        old = self._timers.pop(action.name, None)
        if old:
            old.cancel()
        delay = max(0.0, action.at - self.now())
        loop = asyncio.get_running_loop()
        self._timers[action.name] = loop.call_later(delay, self._timer, action.name)

    def _timer(self, name: str) -> None:
        self._timers.pop(name, None)
        self.measure()
        self.feed(self.scheduler.on_timer(name, self.now()))

    def _spawn(self, action: states.Spawn) -> None:
        try:
            self.crew.spawn(action.worker, self._specs[action.backend], self.hearing)
        except UmlError as e:
            self.feed(self.scheduler.on_failed(action.worker, e, self.now()))
            return
        self._watch.wake()

    def _load(self, action: states.Load) -> None:
        worker, need = self.crew.workers[action.worker], action.need
        model, vital = self.serving.models[need.model], self.crew.vitals[action.worker]
        vital.load_started = vital.moved_at = self.now()
        vital.oom_kills = oom_kills()
        worker.send(
            messages.Load(
                model=model.id,
                files=list(model.file.paths),
                options=self._needs.worker_options(model, need),
                lease=dict(need.bytes),
                threads=action.threads,
                environ=self._needs.environ(need),
            )
        )
        self._events.emit(
            "worker.loading",
            worker=action.worker,
            model=need.model,
            bytes=need.bytes,
            n_ctx=need.n_ctx,
            reason=need.arithmetic,
        )
        self.serving.tell(need.model)
        self._watch.wake()

    async def _kill(self, worker_id: str, reason: str) -> None:
        """The only way out of a worker."""
        worker, state = self.crew.workers.get(worker_id), self.scheduler.workers.get(worker_id)
        model = (state.model if state else None) or ""
        self._events.emit("worker.killing", worker=worker_id, model=model, reason=reason)
        if worker:
            self._calls.on_worker_lost(worker, Cancelled(f"cut: {model} {reason}"))
        if worker and worker.exit is None:
            self.look_at_footprint(worker_id)
        self.footprints.end(worker_id)
        residue = await self.crew.release(worker_id, model, reason)
        self.measure()
        self.feed(self.scheduler.on_gone(worker_id, residue, self.now()))
        error = await self.failures.crashes.write(worker_id)
        self._kills.pop(worker_id, None)
        self.crew.forget(worker_id)
        if timer := self._timers.pop(f"idle {worker_id}", None):
            timer.cancel()
        if error and model:
            self.keeper.failed(model, error)

    # --- looking ---------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def config(self) -> Config:
        return self._config

    @property
    def events(self) -> Events:
        return self._events

    def measure(self) -> None:
        """Tell the scheduler what the machine says now."""
        resident = self.crew.resident(self.scheduler.budget.devices)
        devices = self._machine.snapshot()
        self.pressure.measured(devices)
        self.feed(self.scheduler.on_measured(devices, resident, self.now()))

    def look_at_footprint(self, worker_id: str) -> None:
        """Is it at its peak?"""
        vital, state = self.crew.vitals.get(worker_id), self.scheduler.workers.get(worker_id)
        if vital and state and self.footprints.lives(worker_id):
            held = self.crew.footprint(worker_id, self.scheduler.budget.devices)
            self.footprints.look(worker_id, held)
            vital.looked_after = vital.answered
            self.pressure.note(worker_id, vital.answered, len(state.busy), held)

    def look_at_residue(self) -> None:
        """Bytes that had not come back may have meanwhile."""
        for holder, lease in list(self.scheduler.budget.leases.items()):
            if not lease.residue:
                continue
            left = {d: b for d, b in self.crew.left_of(holder).items() if d in lease.bytes}
            if left != lease.bytes:
                self._events.emit("residue.changed", worker=holder, left=left)
                self.feed(self.scheduler.on_residue(holder, left, self.now()))

    def failing(self) -> dict[str, Failing]:
        """Models that are left alone for a while because they failed again and again."""
        return self.scheduler.breaker.failing(self.now())

    def status(self) -> dict[str, Any]:
        """Devices, workers, queues, residue, the last receipts (see docs: GET /status)."""
        from uml.supervisor.status import report

        self.measure()
        return report(self.scheduler, self.crew, self._machine, self.usage)

    def tail(self, model_id: str, lines: int = 50) -> list[str]:
        """The last lines a model's worker wrote to stderr, also after its end."""
        state = self.scheduler.worker_of(model_id)
        return self.crew.tail(state.id if state else None, model_id, lines)
