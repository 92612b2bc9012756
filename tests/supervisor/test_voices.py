"""Names of voices, also those that clients of OpenAI have built in."""

from __future__ import annotations

import pytest

from uml.protocol.errors import BadRequest
from uml.protocol.models import ModelFacts, ModelFile
from uml.supervisor.api.voices import OPENAI_VOICES, choose, languages_of, stand_in, voices_of
from uml.supervisor.registry import Model


def model(name: str, kind: str = "tts", error: str | None = None, **extra: object) -> Model:
    tasks = {"tts": ("speak",), "stt": ("transcribe",)}.get(kind, ("chat",))
    facts = ModelFacts("x", kind, "x", tasks=tasks, extra=extra)
    file = ModelFile((f"/{name}",), "x", 1, 1)
    return Model(name, (f"{name}-alias",), file, facts, "uml", error, "x", {}, "", 0)


JOE = model("joe", language="en-US", speakers=[], sample_rate=22050)
MANY = model("many", language="de-DE", speakers=["anna", "bert", "2"])
ALL = [JOE, MANY, model("ears", "stt", multilingual=True), model("llm", "llm")]


def test_voice_is_a_model_or_one_speaker_of_it() -> None:
    assert [v.id for v in voices_of(JOE)] == ["joe"]
    assert [v.id for v in voices_of(MANY)] == ["many/anna", "many/bert", "many/2"]
    assert voices_of(ALL[2]) == []


@pytest.mark.parametrize(
    ("of", "voice", "who", "speaker"),
    [
        (JOE, None, JOE, None),
        (JOE, "JOE", JOE, None),
        (JOE, "joe-alias", JOE, None),
        (JOE, "nova", JOE, None),
        (MANY, None, MANY, "anna"),
        (MANY, "many", MANY, "anna"),
        (MANY, "Bert", MANY, "bert"),
        (MANY, "many/2", MANY, "2"),
        (MANY, "alloy", MANY, "anna"),
        (MANY, "ash", MANY, "bert"),
        (MANY, "boss", MANY, "bert"),
    ],
)
def test_named_model_speaks_with_a_voice_of_its_own(
    of: Model, voice: str | None, who: Model, speaker: str | None
) -> None:
    assert choose(of, voice, ALL, {"boss": "bert"}, free=False) == (who, speaker)


def test_openai_names_may_be_any_voice_and_the_configuration_decides() -> None:
    assert choose(JOE, "bert", ALL, {}, free=True) == (MANY, "bert")
    assert choose(MANY, "joe", ALL, {}, free=True) == (JOE, None)
    assert choose(JOE, "many-alias", ALL, {}, free=True) == (MANY, "anna")
    assert choose(JOE, "alloy", ALL, {"alloy": "many/bert"}, free=True) == (MANY, "bert")
    found = (choose(JOE, name, ALL, {}, free=True) for name in OPENAI_VOICES)
    assert len({(who.id, speaker) for who, speaker in found}) == 4, (
        "different names are different voices, as far as there are some"
    )


@pytest.mark.parametrize(("of", "voice"), [(JOE, "many"), (JOE, "bert"), (MANY, "berta")])
def test_voice_that_the_model_has_not_is_refused_with_those_it_has(of: Model, voice: str) -> None:
    with pytest.raises(BadRequest, match=r"there are (joe|many/)") as caught:
        choose(of, voice, ALL, {}, free=False)
    assert caught.value.param == "voice"


def test_openai_models_are_answered_by_one_that_is_loaded_else_the_first() -> None:
    amy, bad = model("amy"), model("aaa", error="broken")
    assert stand_in("tts-1", "speak", [JOE, amy, bad], {}) == amy
    assert stand_in("TTS-1-hd", "speak", [JOE, amy], {"joe": "ready"}) == JOE
    assert stand_in("whisper-1", "transcribe", ALL, {}) == ALL[2]
    assert stand_in("whisper-1", "transcribe", [JOE], {}) is None
    assert stand_in("joe", "speak", ALL, {}) is None


def test_languages_are_told_as_far_as_they_are_known() -> None:
    def of(**extra: object) -> list[str]:
        facts = model("x", "stt", **extra).facts
        assert facts
        return languages_of(facts)

    assert of(multilingual=False) == ["en"]
    assert len(of(multilingual=True)) == 99
    assert len(of(multilingual=True, cantonese=True)) == 100
    assert JOE.facts and languages_of(JOE.facts) == ["en-US"]
