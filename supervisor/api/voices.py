"""Who speaks, and who hears: names of models, voices and speakers, and what clients of OpenAI call
them. Pure.

A voice is a model, or one speaker of a model that has several. `model/speaker` names the latter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import BadRequest
from uml.supervisor.api.languages import NAMES
from uml.supervisor.names import nearest

if TYPE_CHECKING:
    from uml.protocol.models import ModelFacts
    from uml.supervisor.registry import Model

#: Source: OpenAI API reference, create speech.
OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer"),
    *("verse", "marin", "cedar"),
)
#: Task -> OpenAI's models for it. Clients have these names built in.
OPENAI_MODELS = {
    "speak": ("tts-1", "tts-1-hd", "gpt-4o-mini-tts"),
    "transcribe": ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
}
_SHOWN = 20


@dataclass(frozen=True)
class Voice:
    """One way to speak. speaker: None for a model that is one."""

    id: str
    model: str
    speaker: str | None
    language: str
    quality: str
    sample_rate: int


def voices_of(model: Model) -> list[Voice]:
    facts = model.facts
    if facts is None or "speak" not in facts.tasks:
        return []
    extra = facts.extra
    common = (
        str(extra.get("language") or ""),
        facts.quantization,
        int(extra.get("sample_rate") or 0),
    )
    if speakers := extra.get("speakers"):
        return [Voice(f"{model.id}/{name}", model.id, name, *common) for name in speakers]
    return [Voice(model.id, model.id, None, *common)]


def languages_of(facts: ModelFacts) -> list[str]:
    """Codes: what a model speaks or hears; nothing where that is not known."""
    if facts.type == "stt" and "multilingual" in facts.extra:
        if not facts.extra["multilingual"]:
            return ["en"]
        return [c for c in NAMES if c != "yue" or facts.extra.get("cantonese")]
    language = facts.extra.get("language")
    return [str(language)] if language else []


def stand_in(
    name: str, task: str, models: Iterable[Model], loaded: Collection[str]
) -> Model | None:
    """The model that answers to one of OpenAI's names: one that is loaded, else the first. None
    for other names, and when there is none."""
    if name.strip().lower() not in OPENAI_MODELS[task]:
        return None
    able = [m for m in models if m.facts and not m.error and task in m.facts.tasks]
    return min(able, key=lambda m: (m.id not in loaded, m.id), default=None)


def choose(
    model: Model,
    voice: str | None,
    all_models: Sequence[Model],
    configured: Mapping[str, str],
    *,
    free: bool,
) -> tuple[Model, str | None]:
    """(model, speaker) that shall speak. voice: as the client names it. configured: names that the
    configuration gives voices. free: the model was named by one of OpenAI's names, so that the
    voice may be any.

    Raises: BadRequest, naming the voices there are.
    """
    mine = voices_of(model)
    if voice is None or _is(model, voice):
        return model, mine[0].speaker if mine else None
    able = [v for m in all_models for v in voices_of(m)] if free else mine
    wanted = configured.get(voice.lower(), voice)
    for found in able:
        if wanted.lower() in (found.id.lower(), (found.speaker or "").lower()):
            return _model(found, model, all_models), found.speaker
    if free and (other := next((m for m in all_models if _is(m, wanted) and voices_of(m)), None)):
        return other, voices_of(other)[0].speaker
    if voice.lower() in OPENAI_VOICES and able:
        # Different names are different voices as far as there are different ones.
        found = able[OPENAI_VOICES.index(voice.lower()) % len(able)]
        return _model(found, model, all_models), found.speaker
    names = [v.id for v in able]
    near = nearest(voice, names) or names[:_SHOWN]
    more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
    raise BadRequest(
        f"voice {voice[:100]!r} is not known; there are {', '.join(near)}{more} "
        "(GET /v1/audio/voices lists them)",
        param="voice",
    )


def _is(model: Model, name: str) -> bool:
    low = name.lower()
    return low == model.id.lower() or low in (a.lower() for a in model.aliases)


def _model(voice: Voice, model: Model, all_models: Iterable[Model]) -> Model:
    return next((m for m in all_models if m.id == voice.model), model)


def describe(voice: Voice) -> dict[str, Any]:
    return {
        "id": voice.id,
        "object": "voice",
        "name": voice.speaker or voice.model,
        "model": voice.model,
        "speaker": voice.speaker,
        "language": voice.language,
        "quality": voice.quality or None,
        "sample_rate": voice.sample_rate,
    }
