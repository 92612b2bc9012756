from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from uml.supervisor import paths
from uml.supervisor.config import (
    Config,
    ConfigError,
    ModelConfig,
    Takes,
    cache_dir,
    home_dir,
    is_loopback,
    keys,
    load_config,
)

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "uml.example.toml"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "config_dir", lambda: tmp_path / "platform")


def read(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> Config:
    path = tmp_path / "given.toml"
    path.write_text(text)
    return load_config(path, env or {})


def test_defaults_need_no_file() -> None:
    config = load_config(env={})
    assert (config.host, config.port, config.keep_alive_s) == ("127.0.0.1", 8484, 300.0)
    assert config.home == home_dir() and config.path is None


def test_file_sets_every_kind_of_value(tmp_path: Path) -> None:
    config = read(
        """
        keep_alive = "10m"
        model_dirs = ["~/models"]
        preload = ["a"]
        [budget]
        ram = "8GB"
        [models."org/Name"]
        aliases = ["short"]
        n_ctx = 8192
        keep_alive = -1
        sampling = {temperature = 0.5}
        """,
        tmp_path,
    )
    assert config.keep_alive_s == 600 and config.preload == ("a",)
    assert config.model_dirs == (Path.home() / "models",)
    assert config.budget == {"ram": 8_000_000_000}
    model = config.for_model("org/name")
    assert (model.aliases, model.n_ctx, model.keep_alive_s) == (("short",), 8192, -1)
    assert model.sampling == {"temperature": 0.5}
    assert config.for_model("other") == ModelConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", ["prot", "port"]),
        ("port = 99999", ["port", "99999", "65535"]),
        ('port = "high"', ["port", "high", "whole number"]),
        ("port = true", ["port", "True"]),
        ('keep_alive = "soon"', ["keep_alive", "soon", "10m"]),
        ("load_stall = 0", ["load_stall", "above zero"]),
        ("preload = 3", ["preload", "list of texts"]),
        ('budget = {ram = "lots"}', ["budget", "lots", "8GB"]),
        ('log_format = "xml"', ["log_format", "xml", "json"]),
        ("scan_default_stores = 7", ["scan_default_stores", "true or false"]),
        ("home = ''", ["home", "folder"]),
        ("[models.a]\nnctx = 1", ['models."a".nctx', "n_ctx"]),
        ("[models.a]\nslots = 0", ['models."a".slots', "0", "256"]),
        ("models = {a = 3}", ['models."a"', "table"]),
        ("[[", ["TOML"]),
    ],
)
def test_wrong_file_names_key_value_and_what_is_accepted(
    tmp_path: Path, text: str, says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    assert all(word in caught.value.message for word in says), caught.value.message


def test_api_key_never_shows_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read("api_key = 123456", tmp_path)
    assert "123456" not in caught.value.message


def test_variables_override_the_file_and_arguments_override_both(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("port = 1\nqueue_limit = 1\ndrain = 1")
    env = {"UML_QUEUE_LIMIT": "2", "UML_DRAIN": "2s", "UML_MODEL_DIRS": "/a:/b"}
    config = load_config(path, env, {"drain": 3, "host": None})
    assert (config.port, config.queue_limit, config.drain_s) == (1, 2, 3)
    assert config.model_dirs == (Path("/a"), Path("/b")) and config.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"UML_PORT": "x"}, "UML_PORT"),
        ({"UML_BUDGET": "ram"}, "UML_BUDGET"),
        ({"UML_CONFIG": "/no/such/file.toml"}, "/no/such/file.toml"),
    ],
)
def test_wrong_variable_is_named(env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(env=env)


def test_budget_by_variable() -> None:
    config = load_config(env={"UML_BUDGET": "ram=1GiB,cuda0=2GB"})
    assert config.budget == {"ram": 1 << 30, "cuda0": 2_000_000_000}


def test_file_here_comes_before_the_platforms(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "uml.toml").write_text("port = 1")
    assert load_config(env={}).port == 1
    (tmp_path / "uml.toml").write_text("port = 2")
    assert load_config(env={}).port == 2
    (tmp_path / "third.toml").write_text("port = 3")
    assert load_config(env={"UML_CONFIG": str(tmp_path / "third.toml")}).port == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_open_address_without_a_key_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ConfigError, match="UML_API_KEY"):
        load_config(env={"UML_HOST": host})
    assert load_config(env={"UML_HOST": host, "UML_API_KEY": "k"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host) and load_config(env={"UML_HOST": host}).api_key is None


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("UML_HOME", raising=False)
    monkeypatch.delenv("UML_CACHE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert home_dir() == tmp_path / "data" / "uml"
    assert cache_dir() == Path.home() / ".cache" / "uml"
    monkeypatch.setenv("UML_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("UML_CACHE", str(tmp_path / "c"))
    assert (home_dir(), cache_dir()) == (tmp_path / "h", tmp_path / "c")


def documented() -> tuple[dict[str, object], dict[str, object]]:
    """The example with its settings uncommented: top-level keys and one model's keys."""
    text = re.sub(r"(?m)^#(?=[a-z_]+ = |\[models)", "", EXAMPLE.read_text())
    found = tomllib.loads(text)
    models = found.pop("models")
    return found, next(iter(models.values()))


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    top, model = documented()
    assert set(top) | {"models"} == set(keys(Config))
    assert set(model) == set(keys(ModelConfig))


def test_documented_values_are_accepted(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?=[a-z_]+ = |\[models)", "", EXAMPLE.read_text())
    config = read(text, tmp_path)
    assert config.models["smollm2-135m-instruct"].n_ctx == 4096


def test_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """Where the example says "Default:" in its comment, the value is only an example."""
    top, _ = documented()
    example_only = {"home", "max_loaded", "cores", "budget", "reserve", "low_free", "brake"}
    example_only |= {"voices", "profiles"}
    config, defaults = (
        read(
            re.sub(r"(?m)^#(?=[a-z_]+ = )", "", EXAMPLE.read_text().split("# --- one model")[0]),
            tmp_path,
        ),
        load_config(env={}),
    )
    for key in set(top) - example_only:
        name = keys(Config)[key].name
        assert getattr(config, name) == getattr(defaults, name), key


def test_example_as_it_stands_changes_nothing(tmp_path: Path) -> None:
    assert tomllib.loads(EXAMPLE.read_text()) == {}


def test_operations_say_when_a_changed_setting_takes_effect() -> None:
    text = (EXAMPLE.parent / "operations.md").read_text(encoding="utf-8")
    section = text.partition("## A new configuration")[2].partition("\n## ")[0]
    start, _, load = section.partition("- With a new load of the model")
    start = start.partition("- Only with the next start of the server")[2]
    load = load.partition("\n- ")[0]
    for cls, said in ((Config, start), (ModelConfig, load)):
        waits = {k for k, f in keys(cls).items() if f.metadata["takes"] is Takes.START}
        assert set(re.findall(r"`(\w+)`", said)) == waits - {"models"}
