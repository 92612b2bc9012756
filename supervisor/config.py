"""The configuration: one TOML file, `UML_*` variables over it, nothing required.

Each field below carries in its metadata the key it has in the file and the reader that checks
it, so that the file's keys, the variables, the checks and the documentation test share one list.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from uml.protocol.errors import UmlError
from uml.supervisor import config_values as read
from uml.supervisor.config_values import Reader
from uml.supervisor.paths import cache_dir, config_places, find_config, home_dir
from uml.supervisor.units import parse_duration, parse_size

__all__ = [
    "Config",
    "ConfigError",
    "ModelConfig",
    "cache_dir",
    "home_dir",
    "is_loopback",
    "load_config",
    "parse_duration",
    "parse_size",
]

#: In `standby`: as it turns out.
AUTO = "auto"
#: Of events, the least important first.
_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(UmlError):
    """The configuration is wrong; the message names the key, the value and what is accepted."""

    code: ClassVar[str] = "invalid_config"
    status: ClassVar[int] = 400


class Takes(StrEnum):
    """When a setting that is changed while we serve takes effect. START: with the next start, of
    us, or, for one of a model's, of its worker."""

    NOW = "now"
    START = "start"


def _key(
    name: str,
    reader: Reader,
    default: Any = None,
    *,
    env: bool = True,
    takes: Takes = Takes.START,
) -> Any:
    """A field: its key in the file, its reader, whether `UML_<KEY>` sets it."""
    meta = {"key": name, "read": reader, "env": env, "takes": takes}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=meta)
    return field(default=default, metadata=meta)


_now = partial(_key, takes=Takes.NOW)


# --- what is known -------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """What is said of one model, `[models."id"]` in the file. None: the default decides.
    options: passed to the backend as they are. sampling: defaults under a request's own."""

    aliases: tuple[str, ...] = _now("aliases", read.texts, ())
    backend: str | None = _key("backend", read.text)
    n_ctx: int | None = _key("n_ctx", read.whole(16, 1 << 24))
    slots: int | None = _key("slots", read.whole(1, 256))
    gpu_layers: int | None = _key("gpu_layers", read.whole(-1, 10_000))
    cache_type_k: str | None = _key("cache_type_k", read.text)
    cache_type_v: str | None = _key("cache_type_v", read.text)
    keep_alive_s: float | None = _now("keep_alive", read.duration)
    pinned: bool = _now("pinned", read.flag, False)
    priority: int = _now("priority", read.whole(-100, 100), 0)
    cores: int | None = _key("cores", read.whole(1, 1024))
    group: str | None = _now("group", read.text)
    conflicts_with: tuple[str, ...] = _now("conflicts_with", read.texts, ())
    system_prompt: str | None = _now("system_prompt", read.text)
    chat_template: str | None = _key("chat_template", read.text)
    draft_model: str | None = _key("draft_model", read.text)
    sampling: dict[str, Any] = _now("sampling", read.table, {})
    options: dict[str, Any] = _key("options", read.table, {})


@dataclass(frozen=True)
class Config:
    """Everything that can be set. Durations in seconds, negative = no limit; sizes in bytes.

    budget: device -> most bytes we may hold there. reserve_bytes: device -> bytes left to others.
    max_loaded: models at once. cores: that all models share. max_wait_s: how long newer work may
    keep a busy model in place while another waits for its room. min_residency_s: how long a busy
    model stays at least. standby: backends that keep an imported process ready; `AUTO`: those
    whose model had to leave for another.
    low_free_bytes, brake_bytes: device -> free bytes below which idle workers go, and busy ones.
    leak_limit_bytes: growth at equal load that gets a worker replaced; 0 = never.
    conversations_bytes: disk for the states of conversations of models that were unloaded.
    spool_bytes: disk for uploads that wait, max_upload_bytes: of one; max_audio_s: of a recording.
    voices: a client's name for a voice -> ours. profiles: name -> models that belong together.
    fake_device: "fake0:BYTES:DIR", for tests.
    """

    home: Path = field(
        metadata={"key": "home", "read": read.folder, "env": True, "takes": Takes.START}
    )
    host: str = _key("host", read.text, "127.0.0.1")
    port: int = _key("port", read.whole(0, 65535), 8484)
    api_key: str | None = _now("api_key", read.secret)
    allowed_hosts: tuple[str, ...] = _now("allowed_hosts", read.texts, ())
    allowed_origins: tuple[str, ...] = _now("allowed_origins", read.texts, ())
    model_dirs: tuple[Path, ...] = _now("model_dirs", read.folders, ())
    scan_default_stores: bool = _now("scan_default_stores", read.flag, True)
    keep_alive_s: float = _now("keep_alive", read.duration, 300.0)
    queue_limit: int = _now("queue_limit", read.whole(1, 1_000_000), 512)
    max_loaded: int | None = _now("max_loaded", read.whole(1, 1000))
    cores: int | None = _key("cores", read.whole(1, 1024))
    max_wait_s: float = _now("max_wait", read.duration, 8.0)
    min_residency_s: float = _now("min_residency", read.duration, 2.0)
    standby: tuple[str, ...] = _now("standby", read.texts, (AUTO,))
    preload: tuple[str, ...] = _now("preload", read.texts, ())
    budget: dict[str, int] = _now("budget", read.sizes, {})
    reserve_bytes: dict[str, int] = _now("reserve", read.sizes, {})
    low_free_bytes: dict[str, int] = _now("low_free", read.sizes, {})
    brake_bytes: dict[str, int] = _now("brake", read.sizes, {})
    leak_limit_bytes: int = _now("leak_limit", read.size, 512 << 20)
    conversations_bytes: int = _now("conversations", read.size, 1 << 30)
    spool_bytes: int = _key("spool", read.size, 4_000_000_000)
    max_upload_bytes: int = _now("max_upload", read.size, 1_000_000_000)
    max_audio_s: float = _now("max_audio", read.duration, 4 * 3600.0)
    voices: dict[str, str] = _now("voices", read.names, {})
    profiles: dict[str, tuple[str, ...]] = _now("profiles", read.lists, {}, env=False)
    load_stall_s: float = _now("load_stall", read.limit, 120.0)
    beat_overdue_s: float = _now("beat_overdue", read.limit, 10.0)
    drain_s: float = _now("drain", read.duration, 30.0)
    reload_on_change: bool = _now("reload_on_change", read.flag, True)
    log_format: str = _now("log_format", read.choice("text", "json"), "text")
    log_level: str = _now("log_level", read.choice(*_LEVELS), "info")
    fake_device: str | None = _key("fake_device", read.secret)
    models: dict[str, ModelConfig] = _key(
        "models", lambda v: {k: _model(k, m) for k, m in read.table(v).items()}, {}, env=False
    )
    #: The file this came from.
    path: Path | None = None

    def for_model(self, model_id: str) -> ModelConfig:
        """What the file says of a model, letter case apart; defaults when it says nothing."""
        found = self.models.get(model_id)
        if found is None:
            wanted = model_id.casefold()
            same = (m for k, m in self.models.items() if k.casefold() == wanted)
            found = next(same, ModelConfig())
        return found


def keys(cls: type[Config | ModelConfig]) -> dict[str, dataclasses.Field[Any]]:
    """Key in the file -> field."""
    return {f.metadata["key"]: f for f in dataclasses.fields(cls) if f.metadata}


def _read_table(
    cls: type[Config | ModelConfig], table: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Field -> checked value. Raises: ConfigError."""
    known = keys(cls)
    values: dict[str, Any] = {}
    for key, raw in table.items():
        if key not in known:
            raise ConfigError(
                f"{prefix}{key} is not a key{_nearest(key, known)}", param=prefix + key
            )
        values[known[key].name] = _read_value(known[key], raw, prefix + key)
    return values


def _read_value(known: dataclasses.Field[Any], raw: Any, name: str) -> Any:
    try:
        return known.metadata["read"](raw)
    except ValueError as e:
        shown = "***" if known.name == "api_key" else repr(raw)[:80]
        raise ConfigError(f"{name} = {shown} is not accepted: give {e}", param=name) from None


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _model(model_id: str, table: Any) -> ModelConfig:
    name = f'models."{model_id}"'
    if not isinstance(table, dict):
        raise ConfigError(f"{name} is not accepted: give a table", param=name)
    return ModelConfig(**_read_table(ModelConfig, table, f"{name}."))


# --- reading it ----------------------------------------------------------------------------


def config_files(config: Config) -> list[Path]:
    """The files that count for a configuration, or would if they were there."""
    path, places = config.path, config_places()
    return places if path is None or path in places else [path.absolute()]


def load_config(
    path: Path | None = None,
    env: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
    text: str | None = None,
) -> Config:
    """Read and check: defaults < file < `UML_*` < overrides (keys as in the file; None skipped).
    text: stands for what the file says.

    Raises: ConfigError that names the key, the value and what is accepted.
    """
    path = path or find_config(env)
    values: dict[str, Any] = {"home": home_dir()}
    if text is not None or path is not None:
        values |= _read_table(Config, _parse(path, text), "")
    for key, known in keys(Config).items():
        name = f"UML_{key.upper()}"
        if known.metadata["env"] and env.get(name):
            values[known.name] = _read_value(known, env[name], name)
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    values |= _read_table(Config, given, "")
    config = Config(**values, path=path)
    check_together(config)
    return config


def _parse(path: Path | None, text: str | None) -> dict[str, Any]:
    try:
        return tomllib.loads(
            path.read_text(encoding="utf-8") if text is None and path else text or ""
        )
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path or 'the configuration'} is not TOML: {e}") from e


def check_together(config: Config) -> None:
    """What no single key can know. Raises: ConfigError."""
    if not is_loopback(config.host) and not config.api_key:
        raise ConfigError(
            f"host = {config.host!r} is reachable from other machines and no api_key is set: "
            "anybody there could use it. Set UML_API_KEY, or bind 127.0.0.1",
            param="host",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
