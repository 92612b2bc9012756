"""The models that are known: what they are, what they are called, what was measured of them.

The files are the truth and are looked at again at every question (cheaply, see `scan`); the
database (`records`) remembers what would be costly to find out again, and the ids, so that a model
keeps its name when another file appears. Used from one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import Conflict, InvalidModel, ModelNotFound
from uml.protocol.models import BackendSpec, ModelFacts, ModelFile
from uml.supervisor.formats import read_facts, title
from uml.supervisor.names import nearest, split_name
from uml.supervisor.on_disk import UNREADABLE, content_hash, look, may_heal
from uml.supervisor.projectors import Part, attach
from uml.supervisor.records import Record, Records
from uml.supervisor.scan import Found, Scanner, roots

if TYPE_CHECKING:
    from uml.supervisor.config import Config

_BEST = ":best"


@dataclass(frozen=True)
class Model:
    """A model on this machine. error: why it cannot be used; then facts may be missing.
    options: what the configuration says of it. content_hash: of header and size, cheap."""

    id: str
    aliases: tuple[str, ...]
    file: ModelFile
    facts: ModelFacts | None
    source: str
    error: str | None
    backend: str | None
    options: dict[str, Any]
    content_hash: str
    created: int


@dataclass(frozen=True)
class _Entry:
    """A file that was found, and what was read of it."""

    found: Found
    file: ModelFile
    record: Record


class Registry:
    """path: the database; ":memory:" for none. specs: which backends run which format."""

    def __init__(
        self,
        path: Path,
        config: Config,
        specs: Mapping[str, BackendSpec],
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._config, self._specs, self._env = config, specs, env
        self._own = config.home / "models"
        self._scanner = self._look_around()
        self._records = Records(path)
        self.set_aside = self._records.set_aside
        self._entries: dict[str, _Entry] = {}
        self._models: dict[str, Model] = {}
        self._names: dict[str, Model] = {}
        #: Which of one model's quantisations is best here; whoever knows the machine says.
        self.best: Callable[[list[Model]], Model] = lambda found: found[0]

    def close(self) -> None:
        self._records.close()

    def _look_around(self) -> Scanner:
        config = self._config
        return Scanner(roots(config.home, config.model_dirs, config.scan_default_stores, self._env))

    def configure(self, config: Config) -> None:
        """Go on with another configuration."""
        self._config = config
        self._scanner = self._look_around()
        self.rescan(renamed=True)

    # --- asking ----------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """All models, broken ones with their reason, by id."""
        self.rescan()
        return sorted(self._models.values(), key=lambda m: m.id)

    def find(self, name: str) -> Model:
        """The model called `name`: its id, an alias, its file's name; letter case apart. With
        `:best` behind it, the best quantisation of that model that fits.

        Raises: ModelNotFound, naming the nearest; InvalidModel with the reason.
        """
        wanted = name.strip().casefold()
        if wanted.endswith(_BEST) and wanted not in self._names:
            return self._best(name.strip()[: -len(_BEST)])
        model = self._names.get(wanted)
        if model is None or model.error or look(model.file.path)[0] != model.file:
            self.rescan()  # a file that is as it was known needs no search
            model = self._names.get(wanted)
        if model is None:
            raise ModelNotFound(self._unknown(name), param="model")
        if model.error:
            raise InvalidModel(f"{model.id} cannot be used: {model.error}", param="model")
        return model

    def names(self) -> list[str]:
        """All that models are called, letter case apart."""
        self.rescan()
        return list(self._names)

    def current(self, model: Model) -> Model:
        """`model` as it is now, should it have changed since it was asked for."""
        return self._models.get(model.id, model)

    def family(self, model: Model) -> list[Model]:
        """All quantisations of the same model that are on disk, the most exact first."""
        mine = _family(model)
        same = (m for m in self._models.values() if m is model or (mine and _family(m) == mine))
        return sorted(same, key=lambda m: -m.file.size_bytes)

    def _best(self, name: str) -> Model:
        found = self.find(name)
        return self.best(self.family(found))

    def _unknown(self, name: str) -> str:
        names = [n for m in self._models.values() for n in (m.id, *m.aliases)]
        near = nearest(name, names)
        if near:
            return f"model {name[:100]!r} is not known; did you mean {' or '.join(near)}?"
        if names:
            return f"model {name[:100]!r} is not known; `uml ls` lists the models"
        return f"model {name[:100]!r} is not known, and no model is: try `uml pull starter/chat`"

    # --- looking ---------------------------------------------------------------------------

    def rescan(self, force: bool = False, renamed: bool = False) -> None:
        """Take in what changed on disk; `force` reads every header again. renamed: the
        configuration calls models otherwise now."""
        entries = {}
        for found in self._scanner.find():
            entry = self._entry(found, force)
            if entry:
                entries[found.path] = entry
        if entries != self._entries or renamed:
            self._entries = entries
            self._name(attach([_part(entry) for entry in entries.values()]))

    def _entry(self, found: Found, force: bool) -> _Entry | None:
        file, missing = look(found.path)
        if file is None:
            return None  # gone since it was listed
        old = self._entries.get(found.path)
        record = old.record if old else self._records.get(found.path)
        same = record and (record.size, record.mtime_ns) == (file.size_bytes, file.mtime_ns)
        if record and same and not force and not missing and not may_heal(record.error, file):
            return old if old and old.file == file else _Entry(found, file, record)
        return _Entry(found, file, self._read(found, file, record.id if record else "", missing))

    def _read(self, found: Found, file: ModelFile, model_id: str, error: str | None) -> Record:
        """Read a header and remember what it says."""
        facts = None
        if error is None:
            try:
                facts = read_facts(found.path)
            except InvalidModel as e:
                error = e.message
            except OSError as e:
                error = f"{UNREADABLE}{e.strerror}"
        size, stamp = file.size_bytes, file.mtime_ns
        record = Record(found.path, model_id, size, stamp, content_hash(file), facts, error)
        known = self._records.get(found.path)
        return record if record == known else self._records.save(record, found.name)

    def _name(self, facts: dict[str, ModelFacts]) -> None:
        """Make the models of what was found. facts: by path, with what belongs to each."""
        models = [
            self._model(entry, facts.get(path))
            for path, entry in self._entries.items()
            if path in facts or entry.record.facts is None
        ]
        self._models = {model.id: model for model in models}
        # An id is stronger than an alias, and that than a file's name, which others may share.
        names = [(m.id, m) for m in models]
        names += [(alias, m) for m in models for alias in m.aliases]
        for m in models:
            name = title(m.file.path)
            names.append((name, m))
            if name == os.path.basename(m.file.path):
                names.append((os.path.splitext(name)[0], m))
        self._names = {}
        for name, model in names:
            self._names.setdefault(name.casefold(), model)

    def _model(self, entry: _Entry, facts: ModelFacts | None) -> Model:
        record = entry.record
        own = self._config.for_model(record.id)
        options = {
            "n_ctx": own.n_ctx,
            "slots": own.slots,
            "gpu_layers": own.gpu_layers,
            "cache_type_k": own.cache_type_k,
            "cache_type_v": own.cache_type_v,
            "draft_model": own.draft_model,
            **own.options,
        }
        return Model(
            id=record.id,
            aliases=(*own.aliases, *entry.found.aliases),
            file=entry.file,
            facts=_with_template(facts) if own.chat_template and facts else facts,
            source=entry.found.source,
            error=record.error,
            backend=own.backend or self._backend(facts),
            options={k: v for k, v in options.items() if v is not None},
            content_hash=record.hash,
            created=entry.file.mtime_ns // 1_000_000_000,
        )

    def _backend(self, facts: ModelFacts | None) -> str | None:
        """The backend of the highest priority that runs the format."""
        able = [s for s in self._specs.values() if facts and facts.format in s.formats]
        return max(able, key=lambda s: s.priority).name if able else None

    # --- changing --------------------------------------------------------------------------

    def remove(self, model_id: str) -> list[str]:
        """Delete a model's files, and what belongs to it alone.

        Raises: ModelNotFound; Conflict when they are not ours, or cannot be deleted.
        """
        self.rescan()
        model = self._names.get(model_id.strip().casefold())
        if model is None:
            raise ModelNotFound(self._unknown(model_id), param="model")
        paths = list(model.file.paths)
        projector = _projector(model)
        if projector and [_projector(m) for m in self._models.values()].count(projector) == 1:
            paths += [projector] if self._is_own(projector) else []
        for path in model.file.paths:
            if not self._is_own(path):
                raise Conflict(
                    f"{model.id} lies at {path}, which is not ours to delete; remove it there"
                )
        for path in paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # a part that was missing
            except OSError as e:
                raise Conflict(f"{path} cannot be deleted: {e.strerror}") from e
            self._records.forget(path)
        return paths

    def _is_own(self, path: str) -> bool:
        """Whether a file's own entry is in our folder, whatever folders link elsewhere."""
        own = os.path.realpath(self._own)
        folder = os.path.realpath(os.path.dirname(path))
        return folder == own or folder.startswith(own + os.sep)

    # --- measured --------------------------------------------------------------------------

    def record_load(self, model_id: str, seconds: float) -> None:
        self._records.measure(model_id, "load_s", seconds)

    def load_seconds(self, model_id: str) -> float | None:
        """How long the last load took."""
        value = self._records.measured(model_id, "load_s")
        return None if value is None else float(value)

    def record_footprint(self, content_hash: str, key: str, lives: list[dict[str, int]]) -> None:
        if content_hash:
            self._records.save_footprint(content_hash, key, lives)

    def footprint(self, content_hash: str, key: str) -> list[dict[str, int]] | None:
        """Peak bytes per device of each of a file's last lives, run in the way that `key` names."""
        return self._records.footprint(content_hash, key)

    def record_bench(self, model_id: str, figures: Mapping[str, Any]) -> None:
        self._records.measure(model_id, "bench", dict(figures))

    def bench(self, model_id: str) -> dict[str, Any] | None:
        """What `uml bench` found last: `streams` (by number), `load`, `swap`, `at`."""
        value = self._records.measured(model_id, "bench")
        return None if value is None else dict(value)


def _family(model: Model) -> tuple[Any, ...]:
    """What quantisations of one model have in common; () = it has no others."""
    facts = model.facts
    if facts is None or facts.format != "gguf":
        return ()
    name = split_name(os.path.basename(model.file.path))[0]
    return name, facts.arch, facts.type, facts.block_count, facts.embedding_length


def _with_template(facts: ModelFacts) -> ModelFacts:
    """A template from the configuration lets a model chat that brings none."""
    able = "complete" in facts.tasks and "chat" not in facts.tasks
    return replace(facts, tasks=("chat", *facts.tasks)) if able else facts


def _part(entry: _Entry) -> Part:
    return Part(entry.file.path, entry.found.name, entry.record.facts, entry.found.projector)


def _projector(model: Model) -> str | None:
    return model.facts.extra.get("projector") if model.facts else None
