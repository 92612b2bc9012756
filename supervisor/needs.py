"""What a model needs to run: from the registry, the configuration and the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest, InvalidModel, UmlError
from uml.protocol.models import BackendSpec
from uml.supervisor.budget import place
from uml.supervisor.conversations import Conversations
from uml.supervisor.estimates import estimate, resolve_options
from uml.supervisor.machine import Machine
from uml.supervisor.places import places
from uml.supervisor.states import Need

if TYPE_CHECKING:
    from uml.supervisor.config import Config
    from uml.supervisor.registry import Model, Registry


class Needs:
    """Turns a model and a request's wishes into a `Need`."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        specs: Mapping[str, BackendSpec],
        machine: Machine,
        conversations: Conversations,
    ) -> None:
        self._config, self._registry = config, registry
        self._specs, self._machine = specs, machine
        self._conversations = conversations

    def need(
        self, model: Model, keep_alive_s: float | None, options: Mapping[str, Any] | None
    ) -> Need:
        """Bytes per device and how long to stay.

        Raises: InvalidModel (broken, or of a format nobody here runs), BadRequest.
        """
        if model.error or model.facts is None:
            raise InvalidModel(f"{model.id} cannot be loaded: {model.error}", param="model")
        spec = self._specs.get(model.backend or "")
        if spec is None:
            raise InvalidModel(f"no backend here runs {model.facts.format} files", param="model")
        resolved = resolve_options(model.facts, {**model.options, **_checked(options)})
        guess = estimate(model.facts, resolved, spec.process_bytes)
        devices = self._machine.snapshot()
        caps = {
            d.name: min(self._config.budget.get(d.name, d.total_bytes), d.total_bytes)
            - self._config.reserve_bytes.get(d.name, 0)
            for d in devices
        }
        placed = place(
            guess.model_bytes,
            guess.process_bytes,
            devices,
            spec.devices,
            caps,
            resolved.get("device"),
        )
        own = self._config.for_model(model.id)
        return Need(
            model=model.id,
            backend=spec.name,
            bytes=placed.bytes,
            process_bytes={"ram": spec.process_bytes},
            n_ctx=int(resolved.get("n_ctx") or 0),
            keep_alive_s=self._stay(model, keep_alive_s),
            pinned=own.pinned,
            priority=own.priority,
            places=places(model.id, self._config.models, self._identify),
            load_s=self._registry.load_seconds(model.id),
            arithmetic=guess.arithmetic,
            options={**resolved, "device": placed.device},
        )

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
        folder = self._machine.fake_folders.get(need.options.get("device", ""))
        own = self._config.for_model(model.id)
        extra = {"chat_template": own.chat_template} if own.chat_template else {}
        # All layers on the accelerator it was placed on, unless the configuration says how many.
        layers = 0 if need.options.get("device") == "ram" else -1
        if kept := self._conversations.folder(model.content_hash):
            extra["conversations_dir"] = str(kept)
        told = {"n_gpu_layers": layers, **need.options, **extra}
        return {**told, **({"fake_dir": folder} if folder else {})}


def _checked(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's own wishes. Raises: BadRequest."""
    wishes = dict(options or {})
    n_ctx = wishes.get("n_ctx")
    if n_ctx is not None and (
        not isinstance(n_ctx, int) or isinstance(n_ctx, bool) or not 1 <= n_ctx <= 1 << 24
    ):
        raise BadRequest("num_ctx must be a whole number from 1", param="num_ctx")
    return {k: v for k, v in wishes.items() if k == "n_ctx" and v is not None}
