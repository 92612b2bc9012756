"""`run` for models that hear and models that speak."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from uml.supervisor.cli import output, words
from uml.supervisor.cli.failures import Failure, Misuse

if TYPE_CHECKING:
    from uml.supervisor.client import Client

#: What a file's ending says of its format; anything else is refused.
_ENDINGS = {
    **{f".{name}": name for name in ("mp3", "opus", "aac", "flac", "wav", "pcm")},
    ".ogg": "opus",
}
#: Programs that play a WAV file from their stdin.
_PLAYERS = (
    ("pw-play", "-"),
    ("aplay", "-q", "-"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-"),
)
_RATE = 16000


# --- hearing -------------------------------------------------------------------------------


def hear(client: Client, args: argparse.Namespace) -> int:
    """Transcribe a file, what is piped in, or the microphone."""
    form = "srt" if args.srt else "vtt" if args.vtt else "verbose_json" if args.json else None
    wishes = {"language": args.language, "keep_alive": args.keep_alive}
    wishes |= {"temperature": args.temperature, "prompt": args.system}
    given = {k: v for k, v in wishes.items() if v is not None}
    group = client.audio.translations if args.translate else client.audio.transcriptions
    file = _sound(args)
    if form:
        heard = group.create(model=args.model, file=file, response_format=form, **given)
        if args.json:
            output.print_json(heard)
        else:
            _write(args, heard if form != "vtt" else heard.rstrip("\n") + "\n")
        return 0
    with group.create(model=args.model, file=file, stream=True, **given) as stream:
        text = _print_as_it_comes(stream) if not args.output else _last(stream)
    if args.output:
        _write(args, text + "\n")
    return 0


def _print_as_it_comes(stream: Any) -> str:
    text = ""
    for event in stream:
        if event.type == "transcript.text.delta":
            text += event.delta
            shown = output.clean_text(event.delta) if output.terminal() else event.delta
            sys.stdout.write(shown)
            sys.stdout.flush()
    print()
    return text


def _last(stream: Any) -> str:
    text = ""
    for event in stream:
        text = event.text if event.type == "transcript.text.done" else text
    return text


def _write(args: argparse.Namespace, text: str) -> None:
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _sound(args: argparse.Namespace) -> Any:
    """A file's path, or a name and bytes. Raises: Misuse, Failure."""
    name = " ".join(args.prompt)
    if name == "-" or (not name and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read()
        if not data:
            raise Misuse(f"{args.model} hears: give it a sound file, or pipe one in")
        return "stdin", data
    if not name:
        return "microphone.wav", _microphone(args.model)
    if not os.path.isfile(name):
        raise Failure(f"there is no file {name}", f"{args.model} hears: give it a sound file")
    return name


def _microphone(model: str) -> bytes:
    """What is said until Enter, as a WAV file. Raises: Misuse, Failure."""
    try:
        import sounddevice  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ImportError, OSError):
        raise Misuse(
            f"{model} hears: give it a sound file", "for the microphone: pip install sounddevice"
        ) from None
    taken: list[bytes] = []

    def keep(data: Any, *_: Any) -> None:
        taken.append(bytes(data))

    try:
        with sounddevice.RawInputStream(
            samplerate=_RATE,
            channels=1,
            dtype="int16",
            callback=keep,
        ):
            output.note("listening; Enter ends it")
            sys.stdin.readline()
    except Exception as e:  # the library's own, of many kinds
        raise Failure(f"the microphone cannot be used: {e}") from e
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(_RATE)
        f.writeframes(b"".join(taken))
    return out.getvalue()


# --- speaking ------------------------------------------------------------------------------


def speak(client: Client, args: argparse.Namespace, text: str | None) -> int:
    """Speak to a file, or to the loudspeaker."""
    if text is None:
        raise Misuse(f"{args.model} speaks: give it a text")
    form = _format(args.output) if args.output else "wav"
    if not args.output and sys.stdout.isatty() and _player() is None:
        raise Misuse("nothing here plays sound", "give -o FILE.wav, or install aplay or ffplay")
    wishes = {"voice": args.voice, "speed": args.speed, "keep_alive": args.keep_alive}
    given = {k: v for k, v in wishes.items() if v is not None}
    request = client.audio.speech.with_streaming_response.create(
        model=args.model, input=text, response_format=form, **given
    )
    with request as answer:
        if args.output and args.output != "-":
            with open(args.output, "wb") as f:
                count = _copy(answer.iter_bytes(), f)
                if form == "wav":
                    finish_wav(f, count)
            output.note(f"{args.output}: {words.size(count)}")
        elif not args.output and sys.stdout.isatty():
            _play(answer.iter_bytes())
        else:
            _copy(answer.iter_bytes(), sys.stdout.buffer)
    return 0


def _format(name: str) -> str:
    """Raises: Misuse."""
    found = "wav" if name == "-" else _ENDINGS.get(Path(name).suffix.lower())
    if found is None:
        raise Misuse(f"{name} has no ending that says a format", f"one of {', '.join(_ENDINGS)}")
    return found


def _copy(pieces: Iterator[bytes], to: IO[bytes]) -> int:
    count = 0
    for piece in pieces:
        to.write(piece)
        count += len(piece)
    to.flush()
    return count


def finish_wav(file: IO[bytes], size: int) -> None:
    """Write the lengths into a WAV file's header, which were not known when it began."""
    with open(file.name, "rb") as f:
        head = f.read(4096)
    data = head.find(b"data")
    if head[:4] != b"RIFF" or data < 0:
        return
    for offset, length in ((4, size - 8), (data + 4, size - data - 8)):
        file.seek(offset)
        file.write(min(length, 0xFFFFFFFF).to_bytes(4, "little"))


def _player() -> tuple[str, ...] | None:
    """A program that plays, where there is a sound device for it."""
    if not any(map(os.path.exists, ("/dev/snd", f"/run/user/{os.getuid()}/pulse"))):
        return None
    return next((p for p in _PLAYERS if shutil.which(p[0])), None)


def _play(pieces: Iterator[bytes]) -> None:
    player = _player()
    assert player
    with subprocess.Popen(player, stdin=subprocess.PIPE) as process:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            _copy(pieces, process.stdin)
