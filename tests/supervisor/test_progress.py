from __future__ import annotations

import io

from uml.supervisor.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_gets_a_line_per_stage_and_tenth() -> None:
    out = io.StringIO()
    progress = Progress(out)
    for step in range(101):
        progress("compiling", step / 100)
    progress("installing", None)
    progress("installing", None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "compiling ..." and lines[-1] == "installing ..."
    assert len(lines) == 12
    assert "\r" not in out.getvalue()


def test_terminal_gets_one_line_that_is_redrawn() -> None:
    out = Terminal()
    progress = Progress(out)
    progress("compiling", 0.0)
    progress("compiling", 0.5)
    progress("compiling", 1.5)
    progress.close()
    progress.close()
    assert out.getvalue().count("\n") == 1
    assert "[###############...............]  50%" in out.getvalue()
