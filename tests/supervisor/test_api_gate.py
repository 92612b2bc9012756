"""Keys, hosts and origins."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.supervisor.served import chat_body, served
from uml.protocol.errors import Forbidden
from uml.supervisor.api.gate import Gate
from uml.supervisor.app import Supervisor
from uml.supervisor.config import ConfigError, load_config


async def test_key_is_wanted_everywhere_but_for_health(tmp_path: Path) -> None:
    async with served(tmp_path, api_key="s3cret-\u00fc") as house:
        for path in ("/v1/models", "/status", "/logs", "/nope"):
            status, answer, headers = await house.ask("GET", path)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert headers["WWW-Authenticate"] == "Bearer"
        status, answer = await house.post("/v1/chat/completions", {"nonsense": 1})
        assert status == 401, "a stranger learns nothing about the body"
        assert (await house.get("/health"))[0] == 200
        assert (await house.get("/ready"))[0] in (200, 503)
        for headers in (
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret-\u00fc"},
            {"Authorization": "Bearer "},
            {"X-API-Key": "s3cret"},
        ):
            assert (await house.get("/status", **headers))[0] == 401
        for headers in (
            {"Authorization": "Bearer s3cret-\u00fc"},
            {"Authorization": "bearer s3cret-\u00fc"},
            {"X-API-Key": "s3cret-\u00fc"},
        ):
            assert (await house.get("/status", **headers))[0] == 200


@pytest.mark.parametrize(
    ("host", "bound", "known"),
    [
        ("localhost", "127.0.0.1", True),
        ("localhost:8484", "127.0.0.1", True),
        ("LOCALHOST.:8484", "127.0.0.1", True),
        ("127.0.0.1:1", "127.0.0.1", True),
        ("127.9.9.9", "127.0.0.1", True),
        ("[::1]:8484", "127.0.0.1", True),
        ("evil.example", "127.0.0.1", False),
        ("evil.example:8484", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("10.0.0.5", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("10.0.0.5:80", "10.0.0.5", True),
        ("10.0.0.5:80", "0.0.0.0", True),
        ("[fe80::1]", "::", True),
        ("evil.example", "0.0.0.0", False),
        ("my.host:8484", "0.0.0.0", True),
    ],
)
def test_host_must_be_a_name_of_ours(host: str, bound: str, known: bool) -> None:
    gate = Gate(bound, "key", allowed_hosts=["My.Host"])
    if known:
        gate._check_host(host)
    else:
        with pytest.raises(Forbidden):
            gate._check_host(host)


async def test_rebound_name_is_refused_over_http(tmp_path: Path) -> None:
    async with served(tmp_path, allowed_hosts=["uml.lan"]) as house:
        assert (await house.get("/status", Host="evil.example"))[0] == 403
        assert (await house.get("/status", Host="uml.lan:8484"))[0] == 200


async def test_foreign_pages_cannot_change_anything(tmp_path: Path) -> None:
    async with served(tmp_path, allowed_origins=["http://app.example"]) as house:
        foreign = (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": house.url.replace("http:", "http://evil@").replace("////", "//")},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        )
        for headers in foreign:
            for method, path in (
                ("POST", "/load"),
                ("POST", "/v1/chat/completions"),
                ("DELETE", "/v1/models/alpha"),
                ("POST", "/shutdown"),
            ):
                async with house.session.request(
                    method, house.url + path, json={"model": "alpha"}, headers=headers
                ) as response:
                    answer = await response.json()
                assert (response.status, answer["error"]["code"]) == (403, "forbidden"), headers
                assert "Access-Control-Allow-Origin" not in response.headers
        for headers in ({"Origin": house.url}, {"Origin": "http://app.example"}):
            status, _ = await house.post("/load", {"model": "alpha"}, **headers)
            assert status == 200
        assert (tmp_path / "models/alpha.fake.json").exists()


async def test_websocket_of_a_foreign_page_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as house:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await house.session.ws_connect(house.url + "/status", origin="http://evil.example")
        assert caught.value.status == 403


async def test_welcome_page_gets_cors_and_others_do_not(tmp_path: Path) -> None:
    async with served(
        tmp_path,
        api_key="k",
        allowed_origins=["http://app.example"],
        session_headers={"X-API-Key": "k"},
    ) as house:
        ask = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}
        status, _, headers = await house.ask("OPTIONS", "/v1/chat/completions", None, **ask)
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == "http://app.example"
        assert "Authorization" in headers["Access-Control-Allow-Headers"]
        body = chat_body("who", max_tokens=1, stream=True)
        status, _, headers = await house.ask(
            "POST", "/v1/chat/completions", body, Origin="http://app.example"
        )
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == "http://app.example"
        assert headers["Vary"] == "Origin"
        status, _, headers = await house.ask(
            "OPTIONS", "/v1/chat/completions", None, **(ask | {"Origin": "http://evil.example"})
        )
        assert status == 403 and "Access-Control-Allow-Origin" not in headers
        status, _, headers = await house.ask("GET", "/status", Origin="http://evil.example")
        assert status == 200 and "Access-Control-Allow-Origin" not in headers


async def test_shutdown_is_for_this_machine_and_for_no_page(tmp_path: Path) -> None:
    async with served(tmp_path, allowed_origins=["http://app.example"]) as house:
        status, answer = await house.post("/shutdown", {}, Origin="http://app.example")
        assert (status, answer["error"]["code"]) == (403, "forbidden")
        assert not house.supervisor.gateway.stop.is_set()
        status, answer, _ = await house.ask("POST", "/shutdown")  # no body, no type
        assert (status, answer["status"]) == (202, "stopping")
        assert house.supervisor.gateway.stop.is_set()


def test_open_address_without_a_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api_key|UML_API_KEY"):
        load_config(env={}, overrides={"home": str(tmp_path), "host": "0.0.0.0"})


def test_sampling_defaults_are_checked_at_the_start(tmp_path: Path) -> None:
    for sampling in ({"temperature": 9}, {"heat": 1}):
        settings = {"home": str(tmp_path), "models": {"m": {"sampling": sampling}}}
        config = load_config(env={}, overrides=settings)
        with pytest.raises(ConfigError, match=min(sampling)):
            Supervisor(config, log=None)
