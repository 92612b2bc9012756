"""Models of the Hugging Face hub, by the `huggingface_hub` library (extra `hf`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from uml.protocol.errors import (
    BadRequest,
    InternalError,
    NotFound,
    UmlError,
    Unauthorized,
    Unavailable,
)
from uml.supervisor.formats.gguf import shard_number
from uml.supervisor.names import nearest, split_name
from uml.supervisor.pull.web import need_space

Report = Callable[[str, int, int], None]
#: Taken when a repository has many and none was asked for: small enough, good enough.
_PREFERRED = ("q4-k-m", "q4-0", "q5-k-m", "q8-0", "f16")


def fetch(spec: str, work: Path, report: Report) -> list[Path]:
    """`org/repo[:file or quant]`; all shards of a sharded model. HF_ENDPOINT and HF_TOKEN count.

    Raises: UmlError.
    """
    repo, _, wanted = spec.partition(":")
    if repo.count("/") != 1:
        raise BadRequest(f"hf:{spec} is not understood: give hf:org/repo[:file or quant]")
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise InternalError(
            "hf: sources need the huggingface_hub package: "
            "`pip install 'universal-model-loader[hf]'`"
        ) from None
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        files = choose(repo, sorted(sizes), wanted)
        need_space(work, sum(sizes[f] for f in files))
        found = []
        for name in files:
            report(name, 0, sizes[name])
            found.append(Path(hf_hub_download(repo, name, local_dir=work, revision=info.sha)))
            report(name, sizes[name], sizes[name])
        return found
    except HfHubHTTPError as e:
        raise _explain(repo, e) from e
    except OSError as e:
        raise Unavailable(f"the hub cannot be reached: {e}") from e


def _explain(repo: str, error: Exception) -> UmlError:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        token = "the HF_TOKEN that is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN is set"
        return Unauthorized(f"{repo} does not exist on the hub or needs a permission ({token})")
    if status == 404:
        return NotFound(f"the hub has no {repo}")
    return Unavailable(f"the hub answered {status or error}")


def choose(repo: str, files: list[str], wanted: str) -> list[str]:
    """Which files of a repository make the model that was asked for: pure.

    Raises: NotFound, naming what there is.
    """
    models = [f for f in files if f.lower().endswith(".gguf") and "mmproj" not in f.lower()]
    heads = [f for f in models if shard_number(os.path.basename(f)) in (None, 1)]
    if not heads:
        raise NotFound(f"{repo} has no GGUF file")
    by_quant = {split_name(os.path.basename(f))[1] or f: f for f in reversed(heads)}
    if wanted:
        key = wanted.lower().replace("_", "-")
        named = [f for f in heads if f == wanted or os.path.basename(f) == wanted]
        head = named[0] if named else by_quant.get(key)
        if head is None:
            near = nearest(key, by_quant) or sorted(by_quant)
            raise NotFound(f"{repo} has no {wanted}; it has {', '.join(near[:12])}")
    else:
        head = next((by_quant[q] for q in _PREFERRED if q in by_quant), heads[0])
    if shard_number(os.path.basename(head)) is None:
        return [head]
    stem = head.rsplit("-00001-of-", 1)[0]
    return [f for f in models if f.startswith(f"{stem}-")]
