"""Where a command gets its answers: a running supervisor, or the disk when none runs."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uml.supervisor.cli.failures import Failure

if TYPE_CHECKING:
    from uml.supervisor.client import Client
    from uml.supervisor.config import Config
    from uml.supervisor.needs import Needs
    from uml.supervisor.registry import Registry

#: Seconds a supervisor has to answer the question whether it is there.
_HELLO_S = 5.0


def chosen_url(args: argparse.Namespace) -> str | None:
    """The address the user named; None when the configuration decides."""
    return getattr(args, "url", None) or os.environ.get("UML_URL") or None


def configured_url(config: Config) -> str:
    """Where a supervisor with this configuration is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(config.host, config.host)
    host = host.strip("[]")
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def connect(args: argparse.Namespace, timeout: float | None = 600) -> Client:
    """A client for the supervisor that the user means; nothing is sent yet."""
    from uml.supervisor.client import Client

    url = chosen_url(args)
    if url:  # the configured key is for the configured address alone
        return Client(url, timeout=timeout)
    config = load()
    return Client(configured_url(config), config.api_key, timeout=timeout)


def running(args: argparse.Namespace) -> Client | None:
    """A client when a supervisor of ours answers, else None.

    Raises: Unreachable when the user named an address and nobody is there; Failure when
    something else listens there.
    """
    from uml.supervisor.client import Unreachable

    probe = connect(args, timeout=_HELLO_S)
    try:
        health(probe)
    except Unreachable:
        if chosen_url(args):
            raise
        return None
    return connect(args)


def health(client: Client) -> dict[str, object]:
    """The answer of /health. Raises: Unreachable; Failure when it is not one of ours."""
    from uml.protocol.errors import MethodNotAllowed, NotFound, ProtocolError

    try:
        found = client.health()
    except (ProtocolError, NotFound, MethodNotAllowed) as e:
        raise _stranger(client) from e
    if not isinstance(found, dict) or found.get("service") != "uml":
        raise _stranger(client)
    return found


def _stranger(client: Client) -> Failure:
    return Failure(
        f"what answers at {client.base_url} is not uml",
        "another program has the port: UML_PORT or --port picks another, `uml doctor` names it",
    )


def load(config: str | None = None, text: str | None = None, **overrides: object) -> Config:
    """The configuration in effect. text: stands for the file's. Raises: ConfigError."""
    from pathlib import Path

    from uml.supervisor.config import load_config

    return load_config(Path(config).absolute() if config else None, overrides=overrides, text=text)


@contextlib.contextmanager
def registry(config: Config) -> Iterator[Registry]:
    """The models on disk, without a supervisor."""
    from uml.plugins.loader import load_specs
    from uml.supervisor.registry import Registry

    found = Registry(config.home / "registry.sqlite", config, load_specs(config.home))
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def needs(config: Config, registry: Registry) -> Iterator[Needs]:
    """What models would take on this machine, without a supervisor."""
    from uml.plugins.loader import load_specs
    from uml.supervisor.config import cache_dir
    from uml.supervisor.conversations import Conversations
    from uml.supervisor.environments import Environments
    from uml.supervisor.footprints import Footprints
    from uml.supervisor.machine import Machine
    from uml.supervisor.needs import Needs

    specs, machine = load_specs(config.home), Machine(config.fake_device)
    environments = Environments(config.home, cache_dir(), specs)
    kept = Conversations(config.home, config.conversations_bytes)
    footprints = Footprints(registry, environments.version)
    found = Needs(config, registry, specs, machine, kept, footprints, environments.devices)
    registry.best = found.best
    try:
        yield found
    finally:
        machine.close()
