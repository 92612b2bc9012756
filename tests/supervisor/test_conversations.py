from __future__ import annotations

import os
from pathlib import Path

from uml.supervisor.conversations import Conversations


def state(home: Path, model: str, name: str, size: int, used_at: float) -> Path:
    path = home / "conversations" / model / "key" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used_at, used_at))
    return path


def test_prune_deletes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    old = state(tmp_path, "a", "1.kv", 60, 100)
    new = state(tmp_path, "b", "2.kv", 60, 300)
    middle = state(tmp_path, "a", "3.kv", 30, 200)
    assert Conversations(tmp_path, 100).prune() == 60
    assert [p.exists() for p in (old, middle, new)] == [False, True, True]
    assert Conversations(tmp_path, 100).prune() == 0


def test_nothing_is_kept_with_a_limit_of_zero(tmp_path: Path) -> None:
    left = state(tmp_path, "a", "1.kv", 60, 100)
    conversations = Conversations(tmp_path, 0)
    assert conversations.folder("a") is None
    conversations.prune()
    assert not left.exists()


def test_a_removed_models_conversations_go_with_it(tmp_path: Path) -> None:
    gone, stays = state(tmp_path, "a", "1.kv", 1, 1), state(tmp_path, "b", "1.kv", 1, 1)
    Conversations(tmp_path, 100).forget("a")
    assert not gone.exists()
    assert stays.exists()
    Conversations(tmp_path, 100).forget("")
    assert stays.exists()
