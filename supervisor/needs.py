"""What a model needs to run and where: from the registry, the configuration and the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest, InvalidModel, UmlError
from uml.protocol.models import BackendSpec, MemoryEstimate, ModelFacts
from uml.supervisor.admission import size
from uml.supervisor.budget import Bytes, DeviceMemory, add
from uml.supervisor.conversations import Conversations
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.footprints import Footprints, floor, largest
from uml.supervisor.machine import Machine
from uml.supervisor.placement import Demand, Placement, Price, Rules, place, place_layers
from uml.supervisor.places import places
from uml.supervisor.states import Need

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.registry import Model, Registry


@dataclass(frozen=True)
class Sized:
    """A model with every number decided. options: with its place. estimate: bytes per device by
    arithmetic, without what is parked; learned: what it took before, run like this; bytes: what to
    lease."""

    spec: BackendSpec
    options: dict[str, Any]
    guess: MemoryEstimate
    placed: Placement
    estimate: Bytes
    learned: Bytes | None
    bytes: Bytes

    @property
    def arithmetic(self) -> str:
        if self.learned is None:
            return self.guess.arithmetic
        took = " and ".join(f"{size(n)} of {d}" for d, n in self.learned.items() if n)
        return f"{self.guess.arithmetic}; it took {took} before"

    @property
    def error(self) -> float | None:
        """How far the arithmetic is above (below: negative) what was measured, as a share of it."""
        measured = sum((self.learned or {}).values())
        return sum(self.estimate.values()) / measured - 1 if measured else None

    def to_map(self) -> dict[str, Any]:
        """For `show`."""
        guess = self.guess
        return {
            "options": self.options,
            "place": self.placed.reason,
            "estimate": {
                "weights_bytes": guess.weights_bytes,
                "kv_bytes": guess.kv_bytes,
                "compute_bytes": guess.compute_bytes,
                "process_bytes": guess.process_bytes,
                "total_bytes": sum(self.estimate.values()),
                "parked_bytes": guess.parked_bytes,
                "bytes": self.estimate,
            },
            "footprint": self.learned,
            "error": self.error,
            "lease": self.bytes,
        }


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
            process_bytes={"ram": sized.spec.process_bytes},
            n_ctx=int(sized.options.get("n_ctx") or 0),
            keep_alive_s=self._stay(model, keep_alive_s),
            pinned=own.pinned,
            priority=own.priority,
            places=places(model.id, self._config.models, self._identify),
            cores=own.cores or (1 if _all_on_gpu(sized.placed) else None),
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
        resolved = resolve_options(model.facts, {**model.options, **_checked(options)})
        guess = estimate(model.facts, resolved, spec.process_bytes)
        demand = _demand(model.facts, guess, spec)
        placed = self._place(demand, spec, resolved)
        told = _with_place(resolved, placed)
        learned = self._footprints.learned(model.content_hash, spec.name, told)
        parked = {"ram": guess.parked_bytes}
        lease = placed.bytes
        if learned:
            least = add(floor(demand, placed), parked)
            lease = largest([placed.bytes | add(learned, parked), least])
        by_arithmetic = {d: n - parked.get(d, 0) for d, n in placed.bytes.items()}
        return Sized(spec, told, guess, placed, by_arithmetic, learned, lease)

    def _place(
        self,
        demand: Demand,
        spec: BackendSpec,
        options: Mapping[str, Any],
    ) -> Placement:
        """Raises: BadRequest for a device that is not here, InvalidModel for none that would do."""
        devices = {d.name: d for d in self._machine.snapshot()}
        wanted = options.get("device")
        usable = _chosen(wanted, devices)
        kinds = self._kinds(spec.name)
        if wanted is not None and any(d.kind != "ram" for d in usable):
            kinds = tuple(k for k in kinds if k != "cpu")  # there or nowhere
        rules = Rules(kinds, spec.split, spec.offload)
        layers = options.get("n_gpu_layers")
        caps = {name: self._cap(d) for name, d in devices.items()}
        room = {name: self._room(name) for name in devices} if self._room else None
        if layers is not None and layers >= 0:
            placed = place_layers(demand, layers, usable, rules, caps)
        else:
            placed = place(demand, usable, rules, caps, room, self._price)
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
            return self.need(model, keep_alive_s, options)
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
        if own.chat_template:
            told["chat_template"] = own.chat_template
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


def _demand(facts: ModelFacts, guess: MemoryEstimate, spec: BackendSpec) -> Demand:
    tail = min(facts.embedding_bytes, guess.weights_bytes) if facts.block_count else 0
    return Demand(
        layers_bytes=guess.weights_bytes - tail + guess.kv_bytes,
        tail_bytes=tail,
        compute_bytes=guess.compute_bytes,
        context_bytes=spec.context_bytes,
        process_bytes=guess.process_bytes + guess.parked_bytes,
        layers=facts.block_count,
        heads=facts.head_count,
    )


def _all_on_gpu(placed: Placement) -> bool:
    return bool(placed.devices) and placed.layers is None


def _chosen(wanted: Any, devices: Mapping[str, DeviceMemory]) -> list[DeviceMemory]:
    """The devices that may be used: all, or those asked for ("cuda0,cuda1", "ram").

    Raises: BadRequest, naming those that are here.
    """
    if wanted is None:
        return list(devices.values())
    names = ["ram" if n.strip() == "cpu" else n.strip() for n in str(wanted).split(",")]
    unknown = [name for name in names if name not in devices]
    if unknown:
        raise BadRequest(f"device {unknown[0]!r} is not here; there are {', '.join(devices)}")
    return [devices[name] for name in names]


def _with_place(options: Mapping[str, Any], placed: Placement) -> dict[str, Any]:
    """options: with where the layers go, in the words of the workers."""
    layers = -1 if placed.layers is None else placed.layers
    told = {
        **options,
        "device": placed.device,
        "devices": list(placed.devices),
        "n_gpu_layers": layers if placed.devices else 0,
    }
    return told | ({"tensor_split": list(placed.shares)} if len(placed.devices) > 1 else {})


def _checked(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's own wishes. Raises: BadRequest."""
    wishes = dict(options or {})
    n_ctx = wishes.get("n_ctx")
    if n_ctx is not None and (
        not isinstance(n_ctx, int) or isinstance(n_ctx, bool) or not 1 <= n_ctx <= 1 << 24
    ):
        raise BadRequest("num_ctx must be a whole number from 1", param="num_ctx")
    return {k: v for k, v in wishes.items() if k == "n_ctx" and v is not None}
