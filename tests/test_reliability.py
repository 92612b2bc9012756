"""The table of faults names its proofs; here is the proof that they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[str]:
    """Rows of the tables of faults."""
    faults = PAGE.read_text(encoding="utf-8").partition("\n## Faults\n")[2]
    lines = [line for line in faults.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("|---", "| fault"))]


def test_every_fault_names_what_proves_it() -> None:
    assert len(rows()) > 40
    for row in rows():
        fault, *_, proof = [cell.strip() for cell in row.strip("|").split("|")]
        assert fault and NAMED.search(proof), row


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED.findall(PAGE.read_text())}))
def test_the_named_tests_exist(path: str) -> None:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    defined = {getattr(node, "name", "") for node in ast.walk(tree)}
    defined |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    named = {name for where, name in NAMED.findall(PAGE.read_text()) if where == path}
    assert named <= defined, f"not in tests/{path}: {named - defined}"
