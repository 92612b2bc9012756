"""What a model needs to run and where: from the registry, the configuration and the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest, InvalidModel, UmlError
from uml.protocol.models import BackendSpec, MemoryEstimate, ModelFacts
from uml.supervisor import drafts
from uml.supervisor.budget import Bytes, DeviceMemory, add
from uml.supervisor.conversations import Conversations
from uml.supervisor.drafts import draft_of
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.footprints import Footprints, floor, largest
from uml.supervisor.machine import Machine
from uml.supervisor.optimize import Rank, Variant, choose, degraded, profile, variants
from uml.supervisor.placement import Demand, Placement, Price, Rules, place, place_layers
from uml.supervisor.places import places
from uml.supervisor.sized import (
    Sized,
    all_on_gpu,
    chosen,
    demand_of,
    filling,
    share_asked,
    with_place,
    within_share,
)
from uml.supervisor.states import Need

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.registry import Model, Registry


class Needs:
    """Turns a model and a request's wishes into a `Need`.

    kinds: which kinds of devices a backend can use as it is installed. room: bytes of a device
    that may be promised now; None = what is free. price: see `place`.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        specs: Mapping[str, BackendSpec],
        machine: Machine,
        conversations: Conversations,
        footprints: Footprints,
        kinds: Callable[[str], tuple[str, ...]] | None = None,
        room: Callable[[str], int] | None = None,
        price: Price | None = None,
    ) -> None:
        self._config, self._registry = config, registry
        self._specs, self._machine = specs, machine
        self._conversations, self._footprints = conversations, footprints
        self._kinds, self._room = kinds or (lambda name: specs[name].devices), room
        self._price = price
        #: By content: what a model is run with since memory ran out in a load.
        self._degraded: dict[str, dict[str, Any]] = {}

    def need(
        self, model: Model, keep_alive_s: float | None, options: Mapping[str, Any] | None
    ) -> Need:
        """Bytes per device and how long to stay.

        Raises: InvalidModel (broken, or of a format nobody here runs), BadRequest.
        """
        sized = self.size(model, options)
        own = self._config.for_model(model.id)
        return Need(
            model=model.id,
            backend=sized.spec.name,
            bytes=sized.bytes,
            process_bytes={"ram": sized.guess.process_bytes},
            n_ctx=int(sized.options.get("n_ctx") or 0),
            keep_alive_s=self._stay(model, keep_alive_s),
            pinned=own.pinned,
            priority=own.priority,
            places=places(model.id, self._config.models, self._identify),
            cores=own.cores or (1 if all_on_gpu(sized.placed) else None),
            load_s=self._registry.load_seconds(model.id),
            arithmetic=sized.arithmetic,
            options=sized.options,
        )

    def size(self, model: Model, options: Mapping[str, Any] | None = None) -> Sized:
        """What `model` takes and where. Raises: as `need`."""
        if model.error or model.facts is None:
            raise InvalidModel(f"{model.id} cannot be loaded: {model.error}", param="model")
        spec = self._specs.get(model.backend or "")
        if spec is None:
            raise InvalidModel(f"no backend here runs {model.facts.format} files", param="model")
        devices = {d.name: d for d in self._machine.snapshot()}
        draft = draft_of(model, {**model.options, **(options or {})}, self._registry)
        spare = self._degraded.get(model.content_hash, {})
        given = {**model.options, **spare, **_checked(options)}
        context = self._context(model.facts, spec, devices, given)
        resolved = resolve_options(model.facts, {**context, **given})

        def attempt(way: Variant) -> tuple[Rank, Sized]:
            found = self._attempt(model, spec, devices, {**context, **given}, way, draft)
            return found.rank, found

        _, found = choose(variants(model.facts, given, resolved), attempt)
        if spare:
            found = replace(found, why=_say("less, since memory ran out in a load", found.why))
        return found

    def guess(self, model: Model) -> MemoryEstimate:
        """What `model` takes by arithmetic under no backend in particular, whose process comes on
        top. Raises: as `need`."""
        if model.error or model.facts is None:
            raise InvalidModel(f"{model.id} cannot be loaded: {model.error}", param="model")
        return estimate(model.facts, resolve_options(model.facts, model.options), 0)

    def best(self, quantisations: list[Model]) -> Model:
        """Of one model's quantisations, most exact first, the first that runs best; what cannot be
        run at all comes last."""

        def rank(model: Model) -> tuple[Rank, bool]:
            try:
                found = self.size(model)
            except UmlError:
                return Rank.NOWHERE, True
            return found.rank, bool(found.why)

        return min(quantisations, key=rank)

    def _context(
        self,
        facts: ModelFacts,
        spec: BackendSpec,
        devices: Mapping[str, DeviceMemory],
        given: Mapping[str, Any],
    ) -> dict[str, int]:
        """The default context where an accelerator is large; elsewhere the format's own."""
        usable = [d for d in devices.values() if d.kind in self._kinds(spec.name)]
        if "n_ctx" in given or facts.type in ("embedding", "rerank") or facts.format != "gguf":
            return {}
        size_of, kind = profile(usable)
        wanted = min(size_of.n_ctx, facts.context_length or size_of.n_ctx)
        return {"n_ctx": wanted} if kind != "ram" else {}

    def _attempt(
        self,
        model: Model,
        spec: BackendSpec,
        devices: Mapping[str, DeviceMemory],
        given: Mapping[str, Any],
        way: Variant,
        draft: Model | None,
    ) -> Sized:
        assert model.facts is not None
        resolved = resolve_options(model.facts, {**given, **way.changes})
        guess = estimate(model.facts, resolved, spec.process_bytes)
        if draft:
            resolved = drafts.resolve(draft, resolved)
            guess = drafts.beside(guess, draft, resolved)
        demand = demand_of(model.facts, guess, spec)
        placed = self._place(demand, spec, resolved, devices)
        share = share_asked(spec, resolved)
        if share and placed.devices:
            guess, placed = filling(guess, placed, share, spec, devices)
        told = with_place(resolved, placed)
        learned = self._footprints.learned(model.content_hash, spec.name, told)
        parked = {"ram": guess.parked_bytes}
        lease = placed.bytes
        if learned:
            least = add(floor(demand, placed), parked)
            lease = largest([placed.bytes | add(learned, parked), least])
        by_arithmetic = {d: n - parked.get(d, 0) for d, n in placed.bytes.items()}
        rank = self._rank(spec, placed, lease, devices, resolved)
        return Sized(spec, told, guess, placed, by_arithmetic, learned, lease, rank, way.why)

    def _rank(
        self,
        spec: BackendSpec,
        placed: Placement,
        lease: Bytes,
        devices: Mapping[str, DeviceMemory],
        options: Mapping[str, Any],
    ) -> Rank:
        if any(n > self._cap(devices[d]) for d, n in lease.items() if d in devices):
            return Rank.NOWHERE
        asked = options.get("device") is not None or "n_gpu_layers" in options
        kinds = self._kinds(spec.name)
        accelerated = any(d.kind in kinds and d.kind != "ram" for d in devices.values())
        if asked or not accelerated or (placed.devices and placed.layers is None):
            return Rank.WHOLE
        return Rank.PARTLY if placed.devices else Rank.RAM

    def degrade(self, model: Model, need: Need) -> Need | None:
        """Memory ran out while `model` was loaded as `need`: what to try instead, once; None when
        that was tried already or nothing less is possible."""
        layers = model.facts.block_count + 1 if model.facts else 0
        less = degraded(need.options, layers)
        if not less or model.content_hash in self._degraded:
            return None
        self._degraded[model.content_hash] = less
        return self.need(model, need.keep_alive_s, None)

    def _place(
        self,
        demand: Demand,
        spec: BackendSpec,
        options: Mapping[str, Any],
        devices: Mapping[str, DeviceMemory],
    ) -> Placement:
        """Raises: BadRequest for a device that is not here, InvalidModel for none that would do."""
        wanted = options.get("device")
        usable = chosen(wanted, devices)
        kinds = self._kinds(spec.name)
        if wanted is not None and any(d.kind != "ram" for d in usable):
            kinds = tuple(k for k in kinds if k != "cpu")  # there or nowhere
        rules = Rules(kinds, spec.split, spec.offload)
        layers = options.get("n_gpu_layers")
        caps = {name: self._cap(d) for name, d in devices.items()}
        free = {
            name: self._room(name) if self._room else d.free_bytes for name, d in devices.items()
        }
        if share := share_asked(spec, options):
            caps, free = (within_share(limits, share, devices) for limits in (caps, free))
        if layers is not None and layers >= 0:
            placed = place_layers(demand, layers, usable, rules, caps)
        else:
            placed = place(demand, usable, rules, caps, free, self._price)
        if placed is None or not (placed.devices or "cpu" in rules.kinds):
            able = ", ".join(self._kinds(spec.name))
            where = f"{wanted} is none" if wanted else "there is none here"
            raise InvalidModel(f"{spec.name} runs on {able}, and {where}", param="model")
        return placed

    def _cap(self, device: DeviceMemory) -> int:
        total, name = device.total_bytes, device.name
        limit = min(self._config.budget.get(name, total), total)
        return limit - self._config.reserve_bytes.get(name, 0)

    def again(
        self,
        loaded: Need,
        model: Model,
        keep_alive_s: float | None,
        options: Mapping[str, Any] | None,
    ) -> Need:
        """The need of one more request for a model that is loaded as `loaded`: the same, unless a
        larger context is asked for. Raises: as `need`."""
        if int(_checked(options).get("n_ctx", 0)) > loaded.n_ctx:
            kept = {k: v for k, v in loaded.options.items() if k == drafts.KEY}
            return self.need(model, keep_alive_s, {**kept, **(options or {})})
        return replace(loaded, keep_alive_s=self._stay(model, keep_alive_s))

    def configure(self, config: Config) -> None:
        self._config = config

    def adjusted(self, need: Need) -> Need:
        """With what the configuration says now and no reload is needed for."""
        own = self._config.for_model(need.model)
        return replace(
            need,
            pinned=own.pinned,
            priority=own.priority,
            places=places(need.model, self._config.models, self._identify),
        )

    def _identify(self, name: str) -> str:
        with contextlib.suppress(UmlError):
            return self._registry.find(name).id
        return name

    def _stay(self, model: Model, keep_alive_s: float | None) -> float:
        """How long the model stays after a request: as that says, or the model's own setting, or
        the general one."""
        if keep_alive_s is not None:
            return keep_alive_s
        own = self._config.for_model(model.id).keep_alive_s
        return self._config.keep_alive_s if own is None else own

    def worker_options(self, model: Model, need: Need) -> dict[str, Any]:
        """What the worker is told: every number decided here, none of them guessed there."""
        devices = need.options.get("devices") or []
        folders = [f for d in devices if (f := self._machine.fake_folders.get(d))]
        own = self._config.for_model(model.id)
        told = dict(need.options)
        if model.facts:
            told |= {"arch": model.facts.arch, "vocab_size": model.facts.vocab_size}
        if own.chat_template:
            told["chat_template"] = own.chat_template
        if draft := draft_of(model, need.options, self._registry):
            told["draft_files"] = list(draft.file.paths)
        if kept := self._conversations.folder(model.content_hash):
            told["conversations_dir"] = str(kept)
        if folders:
            told["fake_dir"] = folders[0]
        share = self._specs[need.backend].share_option
        if share and devices:
            totals = {d.name: d.total_bytes for d in self._machine.snapshot()}
            told[share] = round(max(need.bytes[d] / totals[d] for d in devices if totals.get(d)), 4)
        return told

    def environ(self, need: Need) -> dict[str, str]:
        """What the worker's process may see: the devices it was placed on, in their order."""
        return self._machine.visible(need.options.get("devices") or [])


def _say(*words: str) -> str:
    return ", ".join(word for word in words if word)


def _checked(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's own wishes. Raises: BadRequest."""
    wishes = dict(options or {})
    n_ctx = wishes.get("n_ctx")
    if n_ctx is not None and (
        not isinstance(n_ctx, int) or isinstance(n_ctx, bool) or not 1 <= n_ctx <= 1 << 24
    ):
        raise BadRequest("num_ctx must be a whole number from 1", param="num_ctx")
    return {k: v for k, v in wishes.items() if k in ("n_ctx", drafts.KEY) and v is not None}
