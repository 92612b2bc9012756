"""Chat templates, rendered inside the backend's environment, where Jinja lives."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.workers.llama.driver import ROOT

pytestmark = pytest.mark.llama

INSIDE = """
import json, sys, types
uml = types.ModuleType("uml"); uml.__path__ = [sys.argv[1]]; sys.modules["uml"] = uml
from uml.protocol.errors import UmlError
from uml.workers.backends.llama_cpp.template import ChatTemplate
out = []
for source, messages, tools, options in json.load(sys.stdin):
    try:
        out.append(ChatTemplate(source, "<s>", "</s>").render(messages, tools, options))
    except UmlError as e:
        out.append({"error": e.message})
print(json.dumps(out))
"""
USER = [{"role": "user", "content": "hi <b>"}]
SYSTEM = [{"role": "system", "content": "be brief"}, *USER]
CALL = [
    *USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}],
    },
]
LOOP = "{% for m in messages %}\n  {{ m.role }}:{{ m.content }}|\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"

CASES: list[tuple[str, tuple[Any, ...], Any]] = [
    ("names", ("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", USER), "<s></s>True"),
    ("blocks are trimmed, text not escaped", (LOOP, USER), "  user:hi <b>|\n"),
    ("a system message moves where none is known", (NO_SYSTEM + LOOP, SYSTEM), "be brief\n\nhi"),
    ("loop controls", ("{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}", USER), "1"),
    ("json", ("{{ tools[0] | tojson }}", USER, [{"a": "<é>"}]), '{"a": "<é>"}'),
    ("tools that are not there", ("{{ tools is none }}{{ documents is none }}", USER), "TrueTrue"),
    ("options", ("{{ enable_thinking }}", USER, [], {"enable_thinking": False}), "False"),
    ("options cannot change messages", ("{{ messages[0].role }}", USER, [], {"messages": 1}), "u"),
    ("generation marks", ("{% generation %}x{%- endgeneration -%}", USER), "x"),
    ("time", ("{{ strftime_now('%Y') | length }}", USER), "4"),
    (
        "arguments as a map",
        ("{{ messages[1].tool_calls[0].function.arguments | tojson }}", CALL),
        '{"a": "é"}',
    ),
    (
        "arguments as text where text is wanted",
        ("{{ 'x' + messages[1].tool_calls[0].function.arguments }}", CALL),
        'x{"a": "é"}',
    ),
    ("a refusal", ("{{ raise_exception('never') }}", USER), {"error": "never"}),
    ("a broken one", ("{% if %}", USER), {"error": "broken"}),
    ("no way out", ("{{ ''.__class__.__mro__[1].__subclasses__() }}", USER), {"error": "unsafe"}),
    ("no endless loop", ("{% for i in range(10 ** 9) %}{% endfor %}", USER), {"error": "big"}),
]


@pytest.fixture(scope="module")
def rendered(llama_python: str) -> list[Any]:
    cases = [(*case, *([], {})[len(case) - 2 :]) for _, case, _ in CASES]
    done = subprocess.run(
        [llama_python, "-I", "-c", INSIDE, str(ROOT)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, _, _ in CASES])
def test_template_can_do_what_templates_do(rendered: list[Any], number: int) -> None:
    expected, got = CASES[number][2], rendered[number]
    if isinstance(expected, dict):
        assert expected["error"] in got["error"]
    else:
        assert expected in got
