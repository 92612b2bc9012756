"""What was heard, in every form; the subtitles are read back by a program that reads subtitles."""

from __future__ import annotations

import json

import pysubs2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uml.supervisor.api.languages import NAMES, code_of
from uml.supervisor.api.transcripts import Transcript, render

HEARD = Transcript(
    [
        {"id": 0, "start": 0.0, "end": 2.5, "text": " One & two.", "words": [{"word": "One"}]},
        {"id": 1, "start": 2.5, "end": 3723.456, "text": " 3 > 2", "words": [{"word": "Three"}]},
    ],
    "en",
    3723.5,
)


def test_text_and_json_are_the_whole_text() -> None:
    assert render(HEARD, "text") == "One & two. 3 > 2\n"
    assert json.loads(render(HEARD, "json")) == {
        "text": "One & two. 3 > 2",
        "usage": {"type": "duration", "seconds": 3724},
    }
    assert json.loads(render(Transcript(), "json"))["text"] == ""


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_read_back_by_a_real_parser(form: str) -> None:
    found = pysubs2.SSAFile.from_string(render(HEARD, form), format_=form)
    assert [(e.start, e.end) for e in found] == [(0, 2500), (2500, 3_723_456)]
    texts = [e.plaintext for e in found]
    assert texts == (["One & two.", "3 > 2"] if form == "srt" else ["One &amp; two.", "3 &gt; 2"])
    assert render(Transcript(), "srt") == "" and render(Transcript(), "vtt") == "WEBVTT\n\n"


@given(
    st.lists(st.tuples(st.floats(0, 360_000), st.floats(0, 100), st.text(max_size=40)), max_size=5)
)
def test_no_text_breaks_out_of_its_cue(said: list[tuple[float, float, str]]) -> None:
    segments = [{"start": s, "end": s + d, "text": t} for s, d, t in said]
    vtt = render(Transcript(segments), "vtt")
    assert vtt.count("-->") == len(said) == vtt.count("\n\n") - 1
    srt = render(Transcript(segments), "srt")
    assert len(srt.split("\n\n")) == len(said) + 1


def test_verbose_has_what_was_asked_for() -> None:
    told = json.loads(render(HEARD, "verbose_json", task="translate", granularities=["word"]))
    assert told["task"] == "translate" and told["language"] == "english"
    assert told["duration"] == 3723.5 and [w["word"] for w in told["words"]] == ["One", "Three"]
    assert "segments" not in told
    told = json.loads(render(HEARD, "verbose_json"))
    assert [s["id"] for s in told["segments"]] == [0, 1] and "words" not in told
    assert {"seek", "tokens", "avg_logprob", "no_speech_prob"} <= set(told["segments"][0])


def test_logprobs_come_when_they_are_asked_for() -> None:
    heard = Transcript([{"text": "a", "logprobs": [{"token": "a", "logprob": -0.5}]}])
    assert "logprobs" not in json.loads(render(heard, "json"))
    assert json.loads(render(heard, "json", logprobs=True))["logprobs"][0]["token"] == "a"


def test_languages_are_known_by_code_and_name() -> None:
    assert len(NAMES) == 100
    assert [code_of(t) for t in ("en", " DE ", "pt-BR", "German", "zh_CN", "jv")] == [
        *("en", "de", "pt", "de", "zh", "jw")
    ]
    assert code_of("klingon") is None and code_of("") is None
