"""Models that belong together: named sets, loaded as one or refused with the arithmetic.

A set comes in only when there is room for all of it at once, whoever else has to leave for it;
nothing is unloaded for a set that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import Conflict, DoesNotFit, NotFound, UmlError, Unavailable
from uml.supervisor.admission import size
from uml.supervisor.names import nearest
from uml.supervisor.states import Need, State

if TYPE_CHECKING:
    from uml.supervisor.commands import Commands
    from uml.supervisor.config import Config
    from uml.supervisor.needs import Needs
    from uml.supervisor.registry import Model, Registry
    from uml.supervisor.scheduler import Scheduler

#: The set that is there without being configured: one that chats, one that hears, one that speaks.
_VOICE = "voice"
_VOICE_TASKS = ("chat", "transcribe", "speak")

Progress = Callable[[str, float | None], None]


def profiles(config: Config, models: Iterable[Model]) -> dict[str, tuple[str, ...]]:
    """Name -> models, the configured ones first."""
    found = dict(config.profiles)
    if _VOICE not in found:
        usable = [m for m in models if m.facts and not m.error]
        able = [[m.id for m in usable if m.facts and t in m.facts.tasks] for t in _VOICE_TASKS]
        if all(able):
            found[_VOICE] = tuple(ids[0] for ids in able)
    return found


class Profiles:
    """Holds no state but the configuration that is in force."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        needs: Needs,
        scheduler: Scheduler,
        commands: Commands,
        measure: Callable[[], object],
    ) -> None:
        self._config, self._registry, self._needs = config, registry, needs
        self._scheduler, self._commands, self._measure = scheduler, commands, measure

    def configure(self, config: Config) -> None:
        self._config = config

    def all(self) -> dict[str, list[str]]:
        found = profiles(self._config, self._registry.models())
        return {name: list(models) for name, models in found.items()}

    async def use(
        self, name: str, *, keep_alive_s: float | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Load all models of a profile; their workers. Raises: UmlError."""
        known = profiles(self._config, self._registry.models())
        if name not in known:
            raise NotFound(_unknown(name, known), param="name")
        models = [self._registry.find(model) for model in known[name]]
        needs = {m.id: self._needs.need(m, keep_alive_s, None) for m in models}
        self._measure()
        if error := refusal(name, needs, self._scheduler):
            raise error
        workers = []
        for model in models:
            tell = partial(_tell, progress, model.id) if progress else None
            workers.append(
                await self._commands.load(model, keep_alive_s=keep_alive_s, progress=tell)
            )
        return {"profile": name, "workers": workers}


def _tell(progress: Progress, model: str, stage: str, fraction: float | None) -> None:
    progress(f"{model}: {stage}", fraction)


def refusal(name: str, needs: Mapping[str, Need], scheduler: Scheduler) -> UmlError | None:
    """Why the models cannot all be loaded at once; None when they can."""
    budget = scheduler.budget
    loaded = {w.model: w for w in scheduler.workers.values() if w.model and w.leased}
    for device in {d for need in needs.values() for d in need.bytes}:
        wants = {m: n.bytes[device] for m, n in needs.items() if n.bytes.get(device)}
        total = sum(wants.values())
        terms = " + ".join(f"{model} {size(count)}" for model, count in wants.items())
        asked = f"profile {name}: {terms} = {size(total)} of {device}"
        if total > budget.cap(device):
            return DoesNotFit(f"{asked}, which can give {size(budget.cap(device))}")
        lacks = sum(b for m, b in wants.items() if m not in loaded)
        room, stays = budget.available(device), []
        for worker in scheduler.workers.values():
            lease = budget.leases.get(worker.id)
            held = lease.bytes.get(device, 0) if lease else 0
            if not held or worker.model in needs:
                continue
            if worker.need and worker.need.pinned and worker.state is not State.KILLING:
                stays.append(f"{worker.model} {size(held)}")
            else:
                room += held
        if lacks > room:
            short = f"{asked}; {size(lacks)} of it are not loaded and {size(max(0, room))} can be"
            if stays:
                return Conflict(f"{short} had beside what is pinned ({', '.join(stays)})")
            return Unavailable(f"{short} had now: others use the rest", retry_after_s=10)
    return None


def _unknown(name: str, known: Mapping[str, object]) -> str:
    if not known:
        return (
            f"profile {name!r} is not known, and none is: name some in the configuration, "
            "or pull starter/chat, starter/stt and starter/tts"
        )
    near = nearest(name, known) or sorted(known)
    return f"profile {name!r} is not known; there is {', '.join(near)}"
