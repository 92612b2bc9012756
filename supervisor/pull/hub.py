"""Models of the Hugging Face hub, by the `huggingface_hub` library (extra `hf`)."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from uml.protocol.errors import (
    BadRequest,
    Forbidden,
    InternalError,
    InvalidModel,
    NotFound,
    UmlError,
    Unauthorized,
    Unavailable,
)
from uml.supervisor.formats import shards
from uml.supervisor.names import nearest, split_name
from uml.supervisor.pull.place import Place, Report, file_sha256, need_space

#: Taken when a repository has many and none was asked for: small enough, good enough.
_PREFERRED = ("q4-k-m", "q4-0", "q5-k-m", "q8-0", "f16")


def fetch(spec: str, place: Place) -> list[Path]:
    """`org/repo[:file or quant]`; all shards of a sharded model. HF_ENDPOINT and HF_TOKEN count.

    Raises: UmlError.
    """
    repo, _, wanted = spec.partition(":")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise BadRequest(f"hf:{spec} is not understood: give hf:org/repo[:file or quant]")
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise InternalError(
            "hf: sources need the huggingface_hub package: "
            "`pip install 'universal-model-loader[hf]'`"
        ) from None
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        known = {s.rfilename: (s.size or 0, _sha256(s)) for s in info.siblings or []}
        files = choose(repo, sorted(known), wanted)
        wants = [known[f] for f in files]
        names = [os.path.basename(f) for f in files]
        if there := place.already(names, lambda i, path: _is(path, *wants[i])):
            return there
        need_space(place.work, sum(size for size, _ in wants))
        found = []
        for name, (size, sha256) in zip(files, wants, strict=True):
            bar = _bar(place.report, os.path.basename(name), size)
            path = hf_hub_download(
                repo, name, local_dir=place.work, revision=info.sha, tqdm_class=bar
            )
            found.append(Path(path))
            if not _is(found[-1], size, sha256):
                found[-1].unlink()
                raise InvalidModel(f"{name} came with the wrong checksum; pull again")
        return found
    except UmlError:
        raise
    except Exception as e:  # of the library's many, by what they carry: it has changed them before
        raise _explain(repo, e) from e


def _sha256(sibling: Any) -> str | None:
    """The hub says it of large files alone."""
    lfs = sibling.lfs
    return (lfs.get("sha256") if isinstance(lfs, dict) else None) or None


def _is(path: Path, size: int, sha256: str | None) -> bool:
    if size and path.stat().st_size != size:
        return False
    return sha256 is None or file_sha256(path) == sha256


def _bar(report: Report, name: str, size: int) -> type:
    """A progress bar of the library's kind that tells `report` instead of drawing."""
    base: Any = importlib.import_module("huggingface_hub.utils").tqdm

    def init(self: Any, *args: Any, **kw: Any) -> None:
        base.__init__(self, *args, **kw | {"disable": True})
        self.done = int(kw.get("initial") or 0)

    def update(self: Any, n: float | None = 1) -> None:
        self.done += int(n or 0)
        report(name, min(self.done, size or self.done), size)

    return type("Bar", (base,), {"__init__": init, "update": update})


def _explain(repo: str, error: Exception) -> UmlError:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 404):
        token = "the HF_TOKEN that is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN is set"
        told = f"{repo} does not exist on the hub or needs a permission ({token})"
        return NotFound(told) if status == 404 else Unauthorized(told)
    if status == 403:
        return Forbidden(f"{repo} is gated: accept its terms on the hub, and set HF_TOKEN")
    return Unavailable(f"{repo} could not be fetched from the hub: {error}"[:500])


def choose(repo: str, files: list[str], wanted: str) -> list[str]:
    """Which files of a repository make the model that was asked for: pure.

    Raises: NotFound, naming what there is.
    """
    models = [f for f in files if f.lower().endswith(".gguf")]
    named = [f for f in models if wanted and wanted in (f, os.path.basename(f))]
    heads = [f for f in models if _number(f) in (None, 1) and "mmproj" not in f.lower()]
    if not heads and not named:
        raise NotFound(f"{repo} has no GGUF file")
    by_quant = {split_name(os.path.basename(f))[1] or f: f for f in reversed(heads)}
    if wanted:
        key = wanted.lower().replace("_", "-")
        head = named[0] if named else by_quant.get(key)
        if head is None:
            near = nearest(key, by_quant) or sorted(by_quant)
            raise NotFound(f"{repo} has no {wanted}; it has {', '.join(near[:12])}")
    else:
        head = next((by_quant[q] for q in _PREFERRED if q in by_quant), heads[0])
    if _number(head) is None:
        return [head]
    stem = head.rpartition("-of-")[0].rpartition("-")[0]
    return [f for f in models if _number(f) is not None and f.startswith(f"{stem}-")]


def _number(file: str) -> int | None:
    return shards.number(os.path.basename(file))
