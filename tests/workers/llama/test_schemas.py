"""Answers of a real model obey any schema of the documented subset.

A slice of them here; `UML_TEST_SCHEMAS=200 ./run.py test -k generated_schemas -s` draws more and
prints what docs/structured-output.md records.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from typing import Any

import jsonschema
import pytest

from tests.workers.llama.driver import ROOT, Answer, WorkerProcess
from tests.workers.llama.schemas import Schemas
from uml.protocol.errors import BadRequest
from uml.protocol.tasks import Chat, Sampling
from uml.supervisor.api.schemas import ANNOTATIONS, FORMATS, KEYWORDS, check_schema

_COUNT = int(os.environ.get("UML_TEST_SCHEMAS", "16"))
_AT_ONCE = 8
_MOST_TOKENS = 300


_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DURATION = r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)"


def _checker() -> jsonschema.FormatChecker:
    """The formats that jsonschema knows by itself, and those for which it wants more packages."""
    checker = jsonschema.FormatChecker()
    own = {
        "date-time": _is_date_time,
        "time": lambda text: _is_date_time(f"2000-01-01T{text}"),
        "hostname": lambda text: bool(re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", text)),
        "duration": lambda text: bool(re.fullmatch(_DURATION, text)),
    }
    for name, fits in own.items():
        checker.checks(name)(lambda v, fits=fits: not isinstance(v, str) or fits(v))
    return checker


def _is_date_time(text: str) -> bool:
    """As RFC 3339 has it: with an offset, in small letters too; also a leap second, which Python
    does not take."""
    day, _, rest = text.upper().partition("T")
    leap = re.sub(r"^(\d\d:\d\d):60", r"\1:59", rest)
    try:
        return datetime.datetime.fromisoformat(f"{day}T{leap}").tzinfo is not None
    except ValueError:
        return False


def test_generated_schemas_are_of_the_documented_subset() -> None:
    for seed in range(300):
        check_schema(Schemas(seed).draw(), "json_schema")


def test_every_keyword_of_the_subset_is_documented() -> None:
    page = (ROOT / "docs/structured-output.md").read_text(encoding="utf-8")
    words = KEYWORDS.keys() - {"$defs", "definitions"} | set(FORMATS) | ANNOTATIONS
    assert not {word for word in words if f"`{word}`" not in page}


@pytest.mark.llama
@pytest.mark.timeout(60 + 15 * _COUNT)
def test_every_answer_obeys_generated_schemas(chat_worker: WorkerProcess) -> None:
    checker = _checker()
    schemas = {seed: Schemas(seed).draw() for seed in range(_COUNT)}
    started, cut, tokens, wrong = time.monotonic(), 0, 0, []
    seeds = list(schemas)
    for first in range(0, _COUNT, _AT_ONCE):
        batch = seeds[first : first + _AT_ONCE]
        names = [chat_worker.ask(_task(schemas[seed], seed)) for seed in batch]
        for seed, answer in zip(batch, _ended(chat_worker, names), strict=True):
            assert answer.done is not None, f"schema {seed}: {answer.error}"
            tokens += answer.done.usage["completion_tokens"]
            if answer.done.finish == ["length"]:
                cut += 1
                continue
            assert answer.done.finish == ["stop"]
            if why := _fault(answer.text(), schemas[seed], checker):
                wrong.append((seed, why, answer.text()))
    print(
        f"\n{_COUNT} schemas: {_COUNT - cut - len(wrong)} whole and valid, {cut} cut by "
        f"max_tokens, {len(wrong)} wrong; {tokens} tokens in {time.monotonic() - started:.0f} s"
    )
    assert not wrong
    assert cut <= _COUNT // 3, "most have to come to their end"


def _task(schema: dict[str, Any], seed: int) -> Chat:
    return Chat(
        messages=[{"role": "user", "content": "Make up an example. Answer in short JSON."}],
        json_schema=schema,
        max_tokens=_MOST_TOKENS,
        sampling=Sampling(temperature=1, seed=seed),
    )


def _ended(worker: WorkerProcess, names: list[str]) -> list[Answer]:
    worker.until(lambda: all(worker.answers[name].ended for name in names), 400)
    return [worker.answers[name] for name in names]


def _fault(text: str, schema: dict[str, Any], checker: jsonschema.FormatChecker) -> str:
    """What is wrong with an answer; "" = nothing."""
    try:
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
    except (ValueError, jsonschema.ValidationError) as e:
        return str(e).splitlines()[0]
    return ""


@pytest.mark.llama
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"type": "string", "pattern": "(?<=a)b"},
        {"type": "string", "pattern": "("},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 1},
    ],
)
def test_schema_that_nothing_can_obey_is_refused(
    chat_worker: WorkerProcess, schema: dict[str, Any]
) -> None:
    check_schema(schema, "json_schema")
    name = chat_worker.ask(_task(schema, 0))
    (answer,) = _ended(chat_worker, [name])
    assert answer.error is not None
    assert answer.error["code"] == BadRequest.code and answer.error["param"] == "json_schema"
