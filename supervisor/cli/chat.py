"""Answers as they come: one, or a conversation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import UmlError
from uml.supervisor.cli import output, words
from uml.supervisor.cli.failures import report

if TYPE_CHECKING:
    from uml.supervisor.client import Client

_QUOTES = '"""'
_HELP = """\
  /bye      end (also Ctrl-D)
  /clear    forget the conversation
  \"\"\"       begins and ends a text of several lines
  Ctrl-C    stops an answer"""


@dataclass
class _Speed:
    """Times of one answer, in seconds as seen from here, and its tokens."""

    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """`12 tokens in, 34 out, first after 0.1 s, 56.7 tokens/s`."""
        now = time.monotonic()
        first = self.first or now
        made = int(self.usage.get("completion_tokens") or 0)
        rate = f", {(made - 1) / (now - first):.1f} tokens/s" if made > 1 and now > first else ""
        return (
            f"{self.usage.get('prompt_tokens', '?')} tokens in, {made} out, "
            f"first after {words.seconds(first - self.started)}{rate}"
        )


def once(client: Client, args: argparse.Namespace, prompt: str, *, chats: bool) -> None:
    """Answer one prompt on stdout. Raises: UmlError."""
    if args.json:
        output.print_json(_ask(client, args, _opening(args, prompt), chats=chats, stream=False))
        return
    _stream(client, args, _opening(args, prompt), chats=chats)


def converse(client: Client, args: argparse.Namespace, *, chats: bool) -> None:
    """Talk until /bye. A model without a chat template goes on with each text by itself."""
    _editing()
    said = _opening(args)
    kind = "a conversation" if chats else "no chat template: each text is continued by itself"
    output.note(f"{args.model}, {kind}; /? for help, /bye to end")
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        if text == "/bye":
            return
        if text in ("/?", "/help"):
            print(_HELP)
        elif text == "/clear":
            said = _opening(args)
            output.note("forgotten")
        elif text.startswith("/") and " " not in text and "\n" not in text:
            output.note(f"unknown command {text}; /? for help")
        elif text.strip():
            said = _turn(client, args, said, text, chats=chats)


def _turn(
    client: Client, args: argparse.Namespace, said: list[dict[str, str]], text: str, *, chats: bool
) -> list[dict[str, str]]:
    """One question and its answer; the conversation after it."""
    asked = [*(said if chats else []), {"role": "user", "content": text}]
    answer: list[str] = []
    try:
        _stream(client, args, asked, chats=chats, into=answer)
    except KeyboardInterrupt:
        print()
    except UmlError as e:  # the conversation goes on: the next question may do better
        report(e)
        return said
    return [*asked, {"role": "assistant", "content": "".join(answer)}] if answer else said


def _opening(args: argparse.Namespace, prompt: str | None = None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": args.system}] if args.system else []
    return system + ([{"role": "user", "content": prompt}] if prompt is not None else [])


def _ask(
    client: Client,
    args: argparse.Namespace,
    said: list[dict[str, str]],
    *,
    chats: bool,
    stream: bool,
) -> Any:
    """The request. Without a chat template the texts themselves are continued."""
    wishes = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "keep_alive": args.keep_alive,
        "stream_options": {"include_usage": True} if stream else None,
    }
    given = {k: v for k, v in wishes.items() if v is not None}
    if chats:
        return client.chat.completions.create(
            model=args.model, messages=said, stream=stream, **given
        )
    prompt = "\n\n".join(m["content"] for m in said)
    return client.completions.create(model=args.model, prompt=prompt, stream=stream, **given)


def _stream(
    client: Client,
    args: argparse.Namespace,
    said: list[dict[str, str]],
    *,
    chats: bool,
    into: list[str] | None = None,
) -> None:
    """Print an answer as it comes, into `into` too. Leaving early cancels the request."""
    speed, last = _Speed(), "\n"
    stream = _ask(client, args, said, chats=chats, stream=True)
    try:
        for piece in _pieces(stream, speed):
            if into is not None:
                into.append(piece)
            shown = output.clean_text(piece) if output.terminal() else piece
            sys.stdout.write(shown)
            sys.stdout.flush()
            last = shown[-1:] or last
    finally:
        stream.close()
        if last != "\n":
            print(flush=True)
    if args.verbose:
        output.note(speed.text())


def _pieces(stream: Any, speed: _Speed) -> Iterator[str]:
    for chunk in stream:
        if chunk.usage:
            speed.usage = chunk.usage
        for choice in chunk.choices or ():
            text = (choice.delta or {}).get("content") if choice.delta else choice.text
            if text:
                speed.first = speed.first or time.monotonic()
                yield text


def _read() -> str:
    """One text from the terminal, of several lines between triple quotes. Raises: EOFError."""
    text = input(">>> ")
    if not text.startswith(_QUOTES):
        return text.strip()
    lines = [text.removeprefix(_QUOTES)]
    while _QUOTES not in lines[-1]:
        lines.append(input("... "))
    lines[-1] = lines[-1].partition(_QUOTES)[0]
    return "\n".join(lines).strip()


def _editing() -> None:
    """Arrow keys and history, where Python was built with it."""
    try:
        import readline  # noqa: F401
    except ImportError:
        pass
