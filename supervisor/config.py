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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from uml.protocol.errors import UmlError
from uml.supervisor.paths import cache_dir, config_places, find_config, home_dir
from uml.supervisor.units import DURATION_FORMS, SIZE_FORMS, parse_duration, parse_size

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

Reader = Callable[[Any], Any]
#: In `standby`: as it turns out.
AUTO = "auto"
#: Of events, the least important first.
_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(UmlError):
    """The configuration is wrong; the message names the key, the value and what is accepted."""

    code: ClassVar[str] = "invalid_config"
    status: ClassVar[int] = 400


# --- readers: a raw value in, the typed one out; ValueError says what is accepted ------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _secret(value: Any) -> str | None:
    return _text(value) or None


def _choice(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(f'"{w}"' for w in words))
        return str(value)

    return read


def _whole(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return read


def _flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def _duration(value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError(DURATION_FORMS) from None


def _limit(value: Any) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ValueError('a duration above zero, like "30s"')
    return seconds


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # from the environment
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of texts")
    return tuple(value)


def _folders(value: Any) -> tuple[Path, ...]:
    names = tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value
    try:
        return tuple(Path(v).expanduser().absolute() for v in _texts(list(names)))
    except (TypeError, ValueError):
        raise ValueError("a list of folders") from None


def _folder(value: Any) -> Path:
    if not _text(value):
        raise ValueError("a folder")
    return Path(value).expanduser().absolute()


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError:
        raise ValueError(SIZE_FORMS) from None


def _sizes(value: Any) -> dict[str, int]:
    if isinstance(value, str):  # from the environment: "ram=8GB,cuda:0=20GB"
        value = dict(part.split("=", 1) for part in _texts(value) if "=" in part) or None
    if not isinstance(value, dict):
        raise ValueError('a table of devices and sizes, like {ram = "8GB"}')
    try:
        return {str(k): parse_size(v) for k, v in value.items()}
    except ValueError:
        raise ValueError(f"for each device {SIZE_FORMS}") from None


def _names(value: Any) -> dict[str, str]:
    if isinstance(value, str):  # from the environment: "alloy=joe,nova=amy"
        value = dict(part.split("=", 1) for part in _texts(value) if "=" in part) or None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError('a table of names, like {alloy = "joe"}')
    return {str(k).lower(): v for k, v in value.items()}


def _lists(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
        raise ValueError('a table of lists, like {voice = ["one", "two"]}')
    return {str(k): _texts(v) for k, v in value.items()}


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value


class Takes(StrEnum):
    """When a setting that is changed while we serve takes effect. START: with the next start, of
    us, or, for one of a model's, of its worker."""

    NOW = "now"
    START = "start"


def _key(
    name: str,
    read: Reader,
    default: Any = None,
    *,
    env: bool = True,
    takes: Takes = Takes.START,
) -> Any:
    """A field: its key in the file, its reader, whether `UML_<KEY>` sets it."""
    meta = {"key": name, "read": read, "env": env, "takes": takes}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=meta)
    return field(default=default, metadata=meta)


_now = partial(_key, takes=Takes.NOW)


# --- what is known -------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """What is said of one model, `[models."id"]` in the file. None: the default decides.
    options: passed to the backend as they are. sampling: defaults under a request's own."""

    aliases: tuple[str, ...] = _now("aliases", _texts, ())
    backend: str | None = _key("backend", _text)
    n_ctx: int | None = _key("n_ctx", _whole(16, 1 << 24))
    slots: int | None = _key("slots", _whole(1, 256))
    gpu_layers: int | None = _key("gpu_layers", _whole(-1, 10_000))
    cache_type_k: str | None = _key("cache_type_k", _text)
    cache_type_v: str | None = _key("cache_type_v", _text)
    keep_alive_s: float | None = _now("keep_alive", _duration)
    pinned: bool = _now("pinned", _flag, False)
    priority: int = _now("priority", _whole(-100, 100), 0)
    cores: int | None = _key("cores", _whole(1, 1024))
    group: str | None = _now("group", _text)
    conflicts_with: tuple[str, ...] = _now("conflicts_with", _texts, ())
    system_prompt: str | None = _now("system_prompt", _text)
    chat_template: str | None = _key("chat_template", _text)
    draft_model: str | None = _key("draft_model", _text)
    sampling: dict[str, Any] = _now("sampling", _table, {})
    options: dict[str, Any] = _key("options", _table, {})


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

    home: Path = field(metadata={"key": "home", "read": _folder, "env": True, "takes": Takes.START})
    host: str = _key("host", _text, "127.0.0.1")
    port: int = _key("port", _whole(0, 65535), 8484)
    api_key: str | None = _now("api_key", _secret)
    allowed_hosts: tuple[str, ...] = _now("allowed_hosts", _texts, ())
    allowed_origins: tuple[str, ...] = _now("allowed_origins", _texts, ())
    model_dirs: tuple[Path, ...] = _now("model_dirs", _folders, ())
    scan_default_stores: bool = _now("scan_default_stores", _flag, True)
    keep_alive_s: float = _now("keep_alive", _duration, 300.0)
    queue_limit: int = _now("queue_limit", _whole(1, 1_000_000), 512)
    max_loaded: int | None = _now("max_loaded", _whole(1, 1000))
    cores: int | None = _key("cores", _whole(1, 1024))
    max_wait_s: float = _now("max_wait", _duration, 8.0)
    min_residency_s: float = _now("min_residency", _duration, 2.0)
    standby: tuple[str, ...] = _now("standby", _texts, (AUTO,))
    preload: tuple[str, ...] = _now("preload", _texts, ())
    budget: dict[str, int] = _now("budget", _sizes, {})
    reserve_bytes: dict[str, int] = _now("reserve", _sizes, {})
    low_free_bytes: dict[str, int] = _now("low_free", _sizes, {})
    brake_bytes: dict[str, int] = _now("brake", _sizes, {})
    leak_limit_bytes: int = _now("leak_limit", _size, 512 << 20)
    conversations_bytes: int = _now("conversations", _size, 1 << 30)
    spool_bytes: int = _key("spool", _size, 4_000_000_000)
    max_upload_bytes: int = _now("max_upload", _size, 1_000_000_000)
    max_audio_s: float = _now("max_audio", _duration, 4 * 3600.0)
    voices: dict[str, str] = _now("voices", _names, {})
    profiles: dict[str, tuple[str, ...]] = _now("profiles", _lists, {}, env=False)
    load_stall_s: float = _now("load_stall", _limit, 120.0)
    beat_overdue_s: float = _now("beat_overdue", _limit, 10.0)
    drain_s: float = _now("drain", _duration, 30.0)
    reload_on_change: bool = _now("reload_on_change", _flag, True)
    log_format: str = _now("log_format", _choice("text", "json"), "text")
    log_level: str = _now("log_level", _choice(*_LEVELS), "info")
    fake_device: str | None = _key("fake_device", _secret)
    models: dict[str, ModelConfig] = _key(
        "models", lambda v: {k: _model(k, m) for k, m in _table(v).items()}, {}, env=False
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
