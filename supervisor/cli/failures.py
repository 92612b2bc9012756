"""How a command ends badly: one line that says what, one that says what to do, an exit code."""

from __future__ import annotations

import os
import re
import sys

from uml.protocol.errors import (
    BackendNotInstalled,
    Conflict,
    DoesNotFit,
    Forbidden,
    InvalidModel,
    LoadFailed,
    ModelNotFound,
    UmlError,
    Unauthorized,
)

FAILED, MISUSE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

_HINTS: tuple[tuple[type[UmlError], str], ...] = (
    (ModelNotFound, "`uml ls` shows what is here, `uml pull SOURCE` fetches more"),
    (InvalidModel, "`uml ls` shows what is wrong with a file"),
    (DoesNotFit, "a shorter context (--ctx) or a smaller quantisation needs less"),
    (BackendNotInstalled, "`uml backends install NAME` adds one"),
    (Unauthorized, "set UML_API_KEY to the key that the server was started with"),
    (Forbidden, "set UML_API_KEY to a key that is allowed to do this"),
    (LoadFailed, "`uml doctor` looks for the usual causes, `uml logs MODEL` has the rest"),
)


class Failure(Exception):
    """A command cannot do what was asked. hint: what to do about it."""

    def __init__(self, message: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


class Misuse(Failure):
    """The command line itself is wrong."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, MISUSE)


def program() -> str:
    """What the user typed to get here: "uml", or "./run.py" from a checkout."""
    return "./run.py" if os.path.basename(sys.argv[0]) == "run.py" else "uml"


def in_their_words(text: str) -> str:
    """Commands named in a text, as this user has to type them."""
    return re.sub(r"(^ *|`|: |\| )uml (?=[a-z-])", rf"\1{program()} ", text, flags=re.MULTILINE)


def explain(error: BaseException) -> Failure:
    """The failure that stands for any exception a command let through."""
    from uml.supervisor.client import Unreachable

    if isinstance(error, Failure):
        return error
    if isinstance(error, Unreachable):
        hint = "start one with `uml serve`; on a new machine, `uml up` sets everything up first"
        return Failure(str(error), hint, UNREACHABLE)
    if isinstance(error, UmlError):
        return Failure(error.message, _hint(error))
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror or error}{where}")
    return Failure(
        f"{type(error).__name__}: {error}", "this is a bug; UML_DEBUG=1 shows where it happened"
    )


def _hint(error: UmlError) -> str:
    if "`uml " in error.message or "did you mean" in error.message:
        return ""  # it says itself what to do
    if isinstance(error, Conflict) and "loaded" in error.message:
        return "`uml unload MODEL` first"
    if error.retry_after_s is not None:
        return f"try again in {error.retry_after_s:.0f} s"
    return next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")


def report(error: BaseException) -> int:
    """Print what went wrong on stderr, never as a traceback unless UML_DEBUG is set; the code."""
    failure = explain(error)
    red, dim, off = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if _coloured() else ("", "", "")
    if os.environ.get("UML_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"{red}error: {in_their_words(_plain(failure.message))}{off}", file=sys.stderr)
    if failure.hint:
        print(f"{dim}hint: {in_their_words(_plain(failure.hint))}{off}", file=sys.stderr)
    return failure.code


def _plain(text: str) -> str:
    """Messages may quote what others wrote: nothing in them commands the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text).strip()


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
