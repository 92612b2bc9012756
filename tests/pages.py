"""Results in the documentation: text between two marks of a page, written anew each time."""

from __future__ import annotations

import re
from pathlib import Path


def put(page: Path, begin: str, text: str, end: str) -> None:
    """Replace all that stands between the marks. Raises: SystemExit when they are not there."""
    found = f"{begin}\n\n{text}\n\n{end}"
    between = f"{re.escape(begin)}.*{re.escape(end)}"
    whole, count = re.subn(
        between, lambda _: found, page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if not count:
        raise SystemExit(f"{page} has no place for results: {begin} ... {end}")
    page.write_text(whole, encoding="utf-8")
