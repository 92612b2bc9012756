"""Which models may not be loaded together, as the configuration says: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from uml.supervisor.budget import place_of

if TYPE_CHECKING:
    from uml.supervisor.config import ModelConfig


def places(
    model: str, tables: Mapping[str, ModelConfig], identify: Callable[[str], str]
) -> tuple[str, ...]:
    """The places that `model` needs: its group's, and one for each model it conflicts with,
    whichever of the two said so. identify: gives the id for any name of a model."""
    found = set()
    for name, table in tables.items():
        this = identify(name)
        if this == model and table.group:
            found.add(place_of("group", table.group))
        for other in map(identify, table.conflicts_with):
            if model in (this, other) and this != other:
                found.add(place_of(this, other))
    return tuple(sorted(found))
