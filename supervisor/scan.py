"""Where model files are: our own folder, the configuration's, and other programs' stores.

Finding is cheap and repeated: folders are listed again only when their time stamp changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor.formats import is_model
from uml.supervisor.formats.gguf import shard_number

#: Folders nested deeper than this are not searched.
_DEPTH = 8


@dataclass(frozen=True)
class Found:
    """A candidate. name: what it is called where it lies; source: which store it is from."""

    path: str
    name: str
    source: str


def roots(
    home: Path, extra: tuple[Path, ...], default_stores: bool, env: Mapping[str, str]
) -> list[tuple[Path, str]]:
    """(folder, source) in order of precedence; folders need not exist."""
    found = [(home / "models", "uml"), *((folder, "config") for folder in extra)]
    if default_stores:
        user = Path(env.get("HOME") or Path.home())
        hf_home = Path(env.get("HF_HOME") or user / ".cache/huggingface")
        found += [
            (Path(env.get("HF_HUB_CACHE") or hf_home / "hub"), "huggingface"),
            (user / ".lmstudio/models", "lmstudio"),
            (user / ".cache/lm-studio/models", "lmstudio"),
            (Path(env.get("OLLAMA_MODELS") or user / ".ollama/models"), "ollama"),
        ]
    return found


class Scanner:
    """Finds candidates under `folders`; remembers folder listings by their time stamps."""

    def __init__(self, folders: list[tuple[Path, str]]) -> None:
        self._folders = folders
        self._listings: dict[str, tuple[int, list[str], list[str]]] = {}

    def find(self) -> list[Found]:
        """All candidates, each real file once, in a stable order."""
        found: dict[str, Found] = {}
        for folder, source in self._folders:
            root = str(folder)
            here = self._ollama(root) if source == "ollama" else self._folder(root, source)
            for candidate in here:
                found.setdefault(os.path.realpath(candidate.path), candidate)
        return sorted(found.values(), key=lambda f: f.path)

    def _folder(self, folder: str, source: str, depth: int = 0) -> Iterator[Found]:
        files, folders = self._list(folder)
        for name in files:
            number = shard_number(name)
            if is_model(name) and (number is None or number == 1):
                yield Found(os.path.join(folder, name), name, source)
        if depth < _DEPTH:
            for name in folders:
                yield from self._folder(os.path.join(folder, name), source, depth + 1)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """(files, folders) in `folder`; unreadable ones are empty.

        Hidden names are left out, since unfinished downloads live there; links to folders are not
        followed, so there are no loops.
        """
        try:
            stamp = os.stat(folder).st_mtime_ns
            known = self._listings.get(folder)
            if known and known[0] == stamp:
                return known[1], known[2]
            files, folders = [], []
            with os.scandir(folder) as entries:
                for entry in entries:
                    # A name that is no text cannot be typed, nor be sent as JSON.
                    if entry.name.startswith(".") or not entry.name.isprintable():
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    else:
                        files.append(entry.name)
        except OSError:
            return [], []
        self._listings[folder] = (stamp, sorted(files), sorted(folders))
        return self._listings[folder][1:]

    def _ollama(self, folder: str) -> Iterator[Found]:
        """Ollama keeps blobs by digest, and names in manifests/<host>/<space>/<name>/<tag>.

        Source: Ollama's docs and the layout of its store.
        """
        blobs = os.path.join(folder, "blobs")
        for manifest in self._files(os.path.join(folder, "manifests")):
            try:
                with open(manifest, encoding="utf-8") as f:
                    layers = json.load(f)["layers"]
                digest = next(
                    layer["digest"]
                    for layer in layers
                    if layer["mediaType"] == "application/vnd.ollama.image.model"
                )
            except (OSError, ValueError, KeyError, TypeError, StopIteration):
                continue
            path = os.path.join(blobs, str(digest).replace(":", "-"))
            if os.path.dirname(os.path.abspath(path)) == os.path.abspath(blobs):
                tag = os.path.basename(manifest)
                name = os.path.basename(os.path.dirname(manifest))
                yield Found(path, name if tag == "latest" else f"{name}-{tag}", "ollama")

    def _files(self, folder: str, depth: int = 0) -> Iterator[str]:
        files, folders = self._list(folder)
        yield from (os.path.join(folder, name) for name in files)
        if depth < _DEPTH:
            for name in folders:
                yield from self._files(os.path.join(folder, name), depth + 1)
