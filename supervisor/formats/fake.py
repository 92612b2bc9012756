"""`*.fake.json`: models of the fake backend, for tests. A JSON object:

{"name", "tasks", "weights_bytes", "n_ctx", "device", "options": {...}}; options as the fake backend
lists them. With a device, weights_bytes are held there, else in RAM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts

ENDINGS: tuple[str, ...] = (".fake.json",)


def is_model(name: str, beside: Collection[str]) -> bool:
    del beside
    return name.lower().endswith(ENDINGS)


def head(name: str) -> str:
    return name


def files(path: str) -> tuple[str, ...]:
    return (path,)


def read_facts(path: str) -> ModelFacts:
    """Raises: InvalidModel."""
    try:
        with open(path, encoding="utf-8") as f:
            return _facts(json.load(f), os.path.basename(path).removesuffix(ENDINGS[0]))
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise InvalidModel(f"not a fake model's JSON: {e}") from e


def _facts(data: dict[str, Any], name: str) -> ModelFacts:
    weights, device = int(data.get("weights_bytes", 0)), data.get("device")
    options = dict(data.get("options", {}))
    if device:
        options |= {"device": device}
        options.setdefault("fake_bytes", weights)
    return ModelFacts(
        format="fake",
        type=data.get("type", "llm"),
        arch="fake",
        tasks=tuple(data.get("tasks", ("chat", "complete", "embed"))),
        name=str(data.get("name", name)),
        context_length=int(data.get("n_ctx", 4096)),
        weights_bytes=weights,
        chat_template="fake",
        extra={"options": options},
    )
