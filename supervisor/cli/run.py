"""`run M [PROMPT]`: ask a model, by what it is; a server is started when none is up."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uml.supervisor.cli import output, remote
from uml.supervisor.cli.failures import Failure, Misuse
from uml.supervisor.cli.parsing import (
    Commands,
    duration,
    json_option,
    number,
    remote_options,
    whole,
)

if TYPE_CHECKING:
    from uml.supervisor.client import Client

_EXAMPLES = """\
uml run smollm2-135m-instruct "Why is the sky blue?"
uml run smollm2-135m-instruct
cat notes.txt | uml run smollm2-135m-instruct "Summarise this:" --max-tokens 100
uml run whisper-tiny-en talk.mp3 --srt -o talk.srt
uml run joe "Good morning." -o morning.wav"""
#: Numbers of a vector that are printed.
_SHOWN = 8


def register(commands: Commands) -> None:
    parser = commands.add(
        "run", ask, "ask, hear or speak; without a prompt, a conversation", _EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="as `uml ls` names it")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="*", help="what to ask or say, or the file to hear"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", metavar="N", type=whole(1, 1 << 24), help="end there")
    parser.add_argument("--temperature", metavar="T", type=number(0, 2), help="0: no chance in it")
    parser.add_argument(
        "--seed", metavar="N", type=whole(0, (1 << 31) - 1), help="to repeat an answer"
    )
    parser.add_argument("--keep-alive", metavar="TIME", type=duration, help='"10m", -1 = for ever')
    parser.add_argument("-o", "--output", metavar="FILE", help="where speech or a transcript goes")
    parser.add_argument("--voice", metavar="NAME", help="of a model with several")
    parser.add_argument("--speed", metavar="X", type=number(0.25, 4), help="of speech, 1 = as is")
    parser.add_argument("--language", metavar="CODE", help="of a recording: en, de ...")
    parser.add_argument("--translate", action="store_true", help="a recording into English")
    parser.add_argument("--srt", action="store_true", help="a transcript as subtitles")
    parser.add_argument("--vtt", action="store_true", help="the same as WebVTT")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tokens/s and time to the first token"
    )
    json_option(parser)
    remote_options(parser)


def ask(args: argparse.Namespace) -> int:
    from uml.supervisor.cli import chat, speech

    _check_prompt(args)
    client = _server(args)
    model = _find(client, args.model)
    args.model = str(model.get("id") or args.model)
    can = model.get("tasks") or _guess(str(model.get("type") or ""))
    if "transcribe" in can:
        _load(client, args)
        return speech.hear(client, args)
    prompt = _prompt(args)
    _load(client, args)
    if "speak" in can:
        return speech.speak(client, args, prompt)
    if "chat" in can or "complete" in can:
        if prompt is None:
            chat.converse(client, args, chats="chat" in can)
        else:
            chat.once(client, args, prompt, chats="chat" in can)
        return 0
    if "embed" in can:
        return _embed(client, args, prompt)
    raise Failure(f"{args.model} is a {model.get('type')} model, which `run` has no use for")


def _guess(kind: str) -> tuple[str, ...]:
    """What a model of this type can do, when the server does not say."""
    return ("embed",) if kind == "embedding" else ("chat",)


def _check_prompt(args: argparse.Namespace) -> None:
    """Before anything is started for it. Raises: Misuse."""
    if not args.prompt and not _is_piped() and not (sys.stdin and sys.stdin.isatty()):
        raise Misuse("there is no prompt", "give one, or pipe one in, or use a terminal")


def _prompt(args: argparse.Namespace) -> str | None:
    """The words, and what is piped in; None for a conversation. Raises: Misuse."""
    words = " ".join(args.prompt).strip()
    piped = sys.stdin.read().strip() if _is_piped() else ""
    prompt = "\n\n".join(part for part in (words, piped) if part)
    if not prompt and not (sys.stdin and sys.stdin.isatty()):
        raise Misuse("there is no prompt", "give one, or pipe one in, or use a terminal")
    if not prompt and args.json:
        raise Misuse("--json wants a prompt")
    return prompt or None


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file: a socket or a device may never end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _server(args: argparse.Namespace) -> Client:
    """The running supervisor, or one that is started now."""
    from uml.supervisor.cli import background
    from uml.supervisor.client import Client

    client = remote.running(args)
    if client:
        return client
    output.note("starting a server in the background")
    config = remote.load()
    started = background.start(config.home, [])
    return Client(started.url, config.api_key)


def _find(client: Client, name: str) -> Mapping[str, Any]:
    """What the server knows of a model. Raises: Failure that says how to get a missing one."""
    from uml.protocol.errors import ModelNotFound

    try:
        found: Mapping[str, Any] = client.models.retrieve(name)
    except ModelNotFound as e:
        if name.startswith(("starter/", "hf:", "pypi:", "http://", "https://")):
            raise Failure(f"{name} is a source, not a model here", f"`uml pull {name}`") from e
        if starter := _starter(name):
            raise Failure(f"{name} is not here yet", f"`uml pull {starter}` fetches it") from e
        raise
    if found.get("error"):
        raise Failure(f"{found.get('id')} cannot be used: {found['error']}")
    return found


#: What people call the starters -> their source.
_STARTERS = {
    "smollm2": "starter/chat",
    "all-minilm": "starter/embed",
    "whisper": "starter/stt",
    "joe": "starter/tts",
}


def _starter(name: str) -> str | None:
    word = name.casefold()
    if word in ("chat", "embed", "stt", "tts"):
        return f"starter/{word}"
    return next((source for start, source in _STARTERS.items() if word.startswith(start)), None)


def _load(client: Client, args: argparse.Namespace) -> None:
    """Load first: it shows how far it is, and an error comes before anything is typed."""
    from uml.supervisor.cli.bars import Steps

    workers = client.status().workers or []
    loaded = any(w.model == args.model and w.state == "ready" for w in workers)
    if not loaded:
        with Steps(f"{args.model}:") as progress:
            client.load(args.model, keep_alive=args.keep_alive, on_progress=progress)


def _embed(client: Client, args: argparse.Namespace, prompt: str | None) -> int:
    if prompt is None:
        raise Misuse(f"{args.model} makes vectors of text: give it some")
    answer = client.embeddings.create(model=args.model, input=prompt)
    if args.json:
        output.print_json(answer)
        return 0
    vector = answer.data[0].embedding
    first = ", ".join(f"{v:+.4f}" for v in vector[:_SHOWN])
    output.say(f"{len(vector)} dimensions: {first}" + (", ..." if len(vector) > _SHOWN else ""))
    if args.verbose and answer.usage:
        output.note(f"{answer.usage.prompt_tokens} tokens")
    return 0
