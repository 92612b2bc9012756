"""`*.fake.json`: models of the fake backend, for tests. A JSON object:

{"name", "tasks", "weights_bytes", "n_ctx", "device", "options": {...}}; options as the fake backend
lists them. With a device, weights_bytes are held there, else in RAM.
"""

from __future__ import annotations

import json
import os

from uml.protocol.errors import InvalidModel
from uml.protocol.models import ModelFacts

_SUFFIX = ".fake.json"


def read_facts(path: str) -> ModelFacts:
    """Raises: InvalidModel."""
    try:
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
    except ValueError as e:
        raise InvalidModel(f"not JSON: {e}") from e
    if not isinstance(data, dict):
        raise InvalidModel("not a JSON object")
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
        name=data.get("name", os.path.basename(path).removesuffix(_SUFFIX)),
        context_length=int(data.get("n_ctx", 4096)),
        weights_bytes=weights,
        chat_template="fake",
        extra={"options": options},
    )
