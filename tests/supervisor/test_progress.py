from __future__ import annotations

import io

from uml.supervisor.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log(seconds_per_step: float) -> list[str]:
    """The lines of a compile of 100 steps."""
    out, now = io.StringIO(), [0.0]
    progress = Progress(out, clock=lambda: now[0])
    for step in range(101):
        progress("compiling", step / 100)
        now[0] += seconds_per_step
    progress("installing", None)
    progress("installing", None)
    assert "\r" not in out.getvalue()
    return out.getvalue().splitlines()


def test_log_of_long_work_gets_a_line_per_tenth() -> None:
    lines = log(seconds_per_step=3)
    assert lines[0] == "compiling ..." and lines[-1] == "installing ..."
    assert lines[5] == "compiling 50% after 150 s" and len(lines) == 12


def test_log_of_short_work_gets_a_line_per_stage() -> None:
    assert log(seconds_per_step=0.01) == ["compiling ...", "installing ..."]


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
