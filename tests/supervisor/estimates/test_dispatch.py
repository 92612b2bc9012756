"""One door to all formats' arithmetic."""

from __future__ import annotations

from uml.protocol.models import ModelFacts
from uml.supervisor.estimates import FORMATS, estimate, resolve_options


def test_format_nobody_wrote_arithmetic_for_is_its_weights_and_a_process() -> None:
    facts = ModelFacts(format="plugins-own", type="llm", arch="x", weights_bytes=7_000_000)
    options = resolve_options(facts, {"flavour": "mint", "n_ctx": None})
    assert options == {"flavour": "mint", "n_ctx": 0, "slots": 1}
    guess = estimate(facts, options, 3_000_000)
    assert guess.total_bytes == 10_000_000
    assert guess.arithmetic == "7 MB weights + 3 MB process"


def test_what_a_file_says_of_itself_gives_way_to_what_is_asked_for() -> None:
    facts = ModelFacts("fake", "llm", "fake", extra={"options": {"slots": 2, "print": True}})
    assert resolve_options(facts, {"slots": 7})["slots"] == 7
    assert resolve_options(facts, {"slots": None})["slots"] == 2


def test_every_format_decides_the_same_when_it_is_asked_again() -> None:
    for name in FORMATS:
        facts = ModelFacts(format=name, type="llm", arch="x", context_length=512)
        once = resolve_options(facts, {})
        assert resolve_options(facts, once) == once, name
