"""Sets of models come in as one, or are refused with the arithmetic and cost nobody anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.supervisor.house import MB
from tests.supervisor.served import Served, served

FILES: dict[str, dict[str, Any]] = {
    "chat": {"weights_bytes": 50 * MB, "options": {"ram_bytes": MB}},
    "ears": {"type": "stt", "tasks": ["transcribe"], "weights_bytes": 60 * MB},
    "mouth": {"type": "tts", "tasks": ["speak"], "weights_bytes": 70 * MB},
    "other": {"weights_bytes": 150 * MB},
}


def loaded(house: Served) -> set[str]:
    return {w["model"] for w in house.supervisor.pool.status()["workers"]}


async def test_voice_profile_is_there_without_being_configured(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES) as house:
        _, found = await house.get("/profiles")
        assert found["profiles"] == {"voice": ["chat", "ears", "mouth"]}
        status, answer = await house.post("/profiles/use", {"name": "voice"})
        assert status == 200 and [w["model"] for w in answer["workers"]] == [
            *("chat", "ears", "mouth")
        ]
        assert loaded(house) == {"chat", "ears", "mouth"}
        status, _ = await house.post("/profiles/use", {"name": "voice"})
        assert status == 200, "once more is fine"
        status, answer = await house.post("/profiles/use", {"name": "vioce"})
        assert status == 404 and "voice" in answer["error"]["message"]
        status, answer = await house.post("/profiles/use", {})
        assert status == 400 and answer["error"]["param"] == "name"
    async with served(tmp_path / "few", files={"chat": {}}) as house:
        assert (await house.get("/profiles"))[1] == {"profiles": {}}


async def test_others_leave_for_a_profile_that_fits(tmp_path: Path) -> None:
    async with served(tmp_path, files=FILES, budget={"ram": "300MiB"}) as house:
        assert (await house.chat("who", model="other"))[0] == 200
        status, _ = await house.post("/profiles/use", {"name": "voice"})
        assert status == 200 and loaded(house) == {"chat", "ears", "mouth"}


async def test_profile_that_does_not_fit_is_refused_and_nobody_leaves(tmp_path: Path) -> None:
    own = {"duo": ["ears", "other"], "mine": ["chat", "nobody"]}
    async with served(tmp_path, files=FILES, budget={"ram": "250MiB"}, profiles=own) as house:
        assert (await house.chat("who", model="other"))[0] == 200
        status, answer = await house.post("/profiles/use", {"name": "voice"})
        assert status == 422
        message = answer["error"]["message"]
        assert "chat 87 MB + ears 96 MB + mouth 107 MB = 290 MB of ram" in message
        assert "262 MB" in message and loaded(house) == {"other"}
        status, answer = await house.post("/profiles/use", {"name": "mine"})
        assert status == 404 and loaded(house) == {"other"}


async def test_profile_beside_a_pinned_model_is_refused_by_its_name(tmp_path: Path) -> None:
    own = {"other": {"pinned": True}}
    async with served(tmp_path, files=FILES, budget={"ram": "350MiB"}, models=own) as house:
        assert (await house.chat("who", model="other"))[0] == 200
        status, answer = await house.post("/profiles/use", {"name": "voice"})
        assert status == 409 and "pinned (other" in answer["error"]["message"]
        assert loaded(house) == {"other"}
