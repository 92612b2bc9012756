"""Where model files are: our own folder, the configuration's, and other programs' stores.

Finding is cheap and repeated: a folder is listed again only when its time stamp changed, or now and
then in case the file system's stamps lag.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uml.supervisor.formats import head, is_model, title

#: Folders nested deeper than this are not searched.
_DEPTH = 8
#: A folder changed less than this ago may change again without its stamp showing it.
_SETTLED_S = 2.0
_RELIST_S = 60.0
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_PROJECTOR = "application/vnd.ollama.image.projector"


@dataclass(frozen=True)
class Found:
    """A candidate. path: of a sharded model's first part, even where only others are there.
    name: what it is called where it lies; source: which store it is from; aliases: what else that
    store calls it; projector: the file that belongs to it, where the store says so."""

    path: str
    name: str
    source: str
    aliases: tuple[str, ...] = ()
    projector: str | None = None


def roots(
    home: Path, extra: tuple[Path, ...], default_stores: bool, env: Mapping[str, str]
) -> list[tuple[Path, str]]:
    """(folder, source) in order of precedence; folders need not exist."""
    found = [(home / "models", "uml"), *((folder, "config") for folder in extra)]
    if default_stores:
        user = Path(env.get("HOME") or Path.home())
        cache = Path(env.get("XDG_CACHE_HOME") or user / ".cache")
        hf_home = Path(env.get("HF_HOME") or cache / "huggingface")
        found += [
            (Path(env.get("HF_HUB_CACHE") or hf_home / "hub"), "huggingface"),
            (user / ".lmstudio/models", "lmstudio"),
            (user / ".cache/lm-studio/models", "lmstudio"),
            (Path(env.get("OLLAMA_MODELS") or user / ".ollama/models"), "ollama"),
        ]
    return found


class Scanner:
    """Finds candidates under `folders`; remembers folder listings by their time stamps."""

    def __init__(
        self, folders: list[tuple[Path, str]], clock: Callable[[], float] = time.time
    ) -> None:
        self._folders, self._clock = folders, clock
        self._listings: dict[str, tuple[int, list[str], list[str]]] = {}
        self._manifests: dict[str, tuple[int, Found | None]] = {}
        self._visited: set[tuple[int, int]] = set()
        self._listed_at = 0.0

    def find(self) -> list[Found]:
        """All candidates, each real file once (links, also hard ones, are the same file), those of
        our own folder first."""
        now = self._clock()
        if not 0 <= now - self._listed_at < _RELIST_S:
            self._listings.clear()
            self._listed_at = now
        self._visited.clear()
        looks = {"huggingface": self._hub, "ollama": self._ollama}
        found: dict[tuple[int, int] | str, Found] = {}
        for folder, source in self._folders:
            for candidate in looks.get(source, self._folder)(str(folder), source):
                try:
                    status = os.stat(candidate.path)
                except FileNotFoundError:
                    if not os.path.islink(candidate.path):  # a first part that is missing
                        found.setdefault(candidate.path, candidate)
                except OSError:
                    found.setdefault(candidate.path, candidate)
                else:
                    if stat.S_ISREG(status.st_mode):
                        found.setdefault((status.st_dev, status.st_ino), candidate)
        return list(found.values())

    def _folder(self, folder: str, source: str, depth: int = 0) -> Iterator[Found]:
        files, folders = self._list(folder)
        seen = set()
        for name in files:
            if is_model(name, files) and (first := head(name)) not in seen:
                seen.add(first)
                path = os.path.join(folder, first)
                yield Found(path, title(path), source)
        if depth < _DEPTH:
            for name in folders:
                yield from self._folder(os.path.join(folder, name), source, depth + 1)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """(files, folders) in `folder`; unreadable ones, and those seen already in this search
        (links may lead in circles), are empty. Hidden names are left out: unfinished downloads
        live there."""
        try:
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in self._visited:
                return [], []
            self._visited.add(identity)
            known = self._listings.get(folder)
            if known and known[0] == status.st_mtime_ns:
                return known[1], known[2]
            files: list[str] = []
            folders: list[str] = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        (folders if _is_folder(entry) else files).append(entry.name)
        except OSError:
            return [], []
        files.sort()
        folders.sort()
        if self._clock() - status.st_mtime > _SETTLED_S:
            self._listings[folder] = (status.st_mtime_ns, files, folders)
        else:
            self._listings.pop(folder, None)
        return files, folders

    def _hub(self, folder: str, source: str) -> Iterator[Found]:
        """The Hugging Face cache: models--<org>--<repo>/snapshots/<revision>/ links to blobs.

        Source: huggingface_hub's documentation, "Understand caching".
        """
        for name in self._list(folder)[1]:
            kind, *parts = name.split("--")
            if kind == "models":
                snapshots = os.path.join(folder, name, "snapshots")
                for found in self._folder(snapshots, source):
                    # A model that is the whole of a revision is called as the repository is.
                    revision = os.path.dirname(found.path).removeprefix(snapshots + os.sep)
                    called = parts[-1] if found.name == revision else found.name
                    yield Found(found.path, called, source, ("/".join(parts),))

    def _ollama(self, folder: str, source: str) -> Iterator[Found]:
        """Ollama keeps blobs by digest, and names in manifests/<host>/<space>/<name>/<tag>.

        Source: Ollama's docs and the layout of its store.
        """
        for manifest in self._files(os.path.join(folder, "manifests")):
            try:
                stamp = os.stat(manifest).st_mtime_ns
            except OSError:
                continue
            known = self._manifests.get(manifest)
            if known is None or known[0] != stamp:
                known = stamp, _read_manifest(manifest, os.path.join(folder, "blobs"), source)
                self._manifests[manifest] = known
            if known[1]:
                yield known[1]

    def _files(self, folder: str, depth: int = 0) -> Iterator[str]:
        files, folders = self._list(folder)
        yield from (os.path.join(folder, name) for name in files)
        if depth < _DEPTH:
            for name in folders:
                yield from self._files(os.path.join(folder, name), depth + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _read_manifest(manifest: str, blobs: str, source: str) -> Found | None:
    """The model one of Ollama's manifests names; None when it names none."""
    try:
        with open(manifest, encoding="utf-8") as f:
            layers = {str(e["mediaType"]): str(e["digest"]) for e in json.load(f)["layers"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    paths = {}
    for kind in (_OLLAMA_MODEL, _OLLAMA_PROJECTOR):
        blob = layers.get(kind, "").replace(":", "-")
        if blob and os.path.basename(blob) == blob:  # a digest, not a way out of the folder
            paths[kind] = os.path.join(blobs, blob)
    if _OLLAMA_MODEL not in paths:
        return None
    *_, space, name, tag = Path(manifest).parts
    full = name if space == "library" else f"{space}/{name}"
    return Found(
        paths[_OLLAMA_MODEL],
        name if tag == "latest" else f"{name}-{tag}",
        source,
        (f"{full}:{tag}",),
        paths.get(_OLLAMA_PROJECTOR),
    )
