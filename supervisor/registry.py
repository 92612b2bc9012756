"""The models that are known: what they are, what they are called, what was measured of them.

The files are the truth and are looked at again at every question (cheaply, see `scan`); the
database remembers what would be costly to find out again, and the ids, so that a model keeps its
name when another file appears.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import Conflict, InvalidModel, ModelNotFound
from uml.protocol.models import BackendSpec, ModelFacts, ModelFile
from uml.supervisor.formats import gguf, read_facts
from uml.supervisor.names import make_id, nearest, slug
from uml.supervisor.scan import Found, Scanner, roots

if TYPE_CHECKING:
    from uml.supervisor.config import Config

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, id TEXT UNIQUE NOT NULL, size INTEGER, mtime_ns INTEGER,
    hash TEXT, facts TEXT, error TEXT, seen INTEGER
);
CREATE TABLE IF NOT EXISTS measured (
    model TEXT, what TEXT, value TEXT, at REAL, PRIMARY KEY (model, what)
);
"""
#: Facts read by an older version of the readers are read again.
_VERSION = 1
#: A broken file that changed this recently may still be being written.
_FRESH_S = 5.0
#: Header bytes that, with the size, tell one model file from another.
_HASHED = 1 << 20


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


class Registry:
    """path: the database; ":memory:" for none. specs: which backends run which format."""

    def __init__(
        self,
        path: Path,
        config: Config,
        specs: Mapping[str, BackendSpec],
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._config, self._specs = config, specs
        self._own = config.home / "models"
        stores = roots(config.home, config.model_dirs, config.scan_default_stores, env)
        self._scanner = Scanner(stores)
        self.set_aside: Path | None = None
        self._db = self._open(path)
        self._models: dict[str, Model] = {}

    def close(self) -> None:
        self._db.close()

    # --- asking ----------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """All models, broken ones with their reason, by id."""
        self.rescan()
        return sorted(self._models.values(), key=lambda m: m.id)

    def find(self, name: str) -> Model:
        """The model called `name`: its id, an alias, its file's name; letter case apart.

        Raises: ModelNotFound, naming the nearest; InvalidModel with the reason.
        """
        self.rescan()
        wanted = name.strip().casefold()
        for model in self._models.values():
            known = {model.id.casefold(), *(a.casefold() for a in model.aliases)}
            if wanted in known or wanted == os.path.basename(model.file.path).casefold():
                if model.error:
                    raise InvalidModel(f"{model.id} cannot be used: {model.error}", param="model")
                return model
        raise ModelNotFound(self._unknown(name), param="model")

    def _unknown(self, name: str) -> str:
        names = [n for m in self._models.values() for n in (m.id, *m.aliases)]
        near = nearest(name, names)
        if near:
            return f"model {name[:100]!r} is not known; did you mean {' or '.join(near)}?"
        if names:
            return f"model {name[:100]!r} is not known; `uml ls` lists the models"
        return f"model {name[:100]!r} is not known, and no model is: try `uml pull starter/chat`"

    # --- looking ---------------------------------------------------------------------------

    def rescan(self, force: bool = False) -> None:
        """Take in what changed on disk; `force` reads every header again."""
        models = {}
        for found in self._scanner.find():
            model = self._model(found, force)
            if model:
                models[model.id] = model
        self._models = models

    def _model(self, found: Found, force: bool) -> Model | None:
        try:
            paths = gguf.shards(found.path)
            missing = None
        except InvalidModel as e:
            paths, missing = (found.path,), e.message
        try:
            stats = [os.stat(path) for path in paths]
        except OSError:
            return None  # gone since it was listed, or a dangling link
        file = ModelFile(
            paths=paths,
            format="fake" if found.path.endswith(".fake.json") else "gguf",
            size_bytes=sum(s.st_size for s in stats),
            mtime_ns=max(s.st_mtime_ns for s in stats),
        )
        row = self._db.execute("SELECT * FROM files WHERE path = ?", (found.path,)).fetchone()
        known = row and (row["size"], row["mtime_ns"]) == (file.size_bytes, file.mtime_ns)
        if not known or force or (row["error"] and self._is_fresh(file)) or missing:
            row = self._read(found, file, row["id"] if row else None, missing)
        facts = _facts_from(row["facts"])
        if facts and facts.type == "projector":
            return None  # belongs to another model
        own = self._config.for_model(row["id"])
        chosen = own.backend or self._backend(facts)
        options = {
            "n_ctx": own.n_ctx,
            "slots": own.slots,
            "gpu_layers": own.gpu_layers,
            "cache_type_k": own.cache_type_k,
            "cache_type_v": own.cache_type_v,
            **own.options,
        }
        return Model(
            id=row["id"],
            aliases=own.aliases,
            file=file,
            facts=facts,
            source=found.source,
            error=row["error"],
            backend=chosen,
            options={k: v for k, v in options.items() if v is not None},
            content_hash=row["hash"],
            created=file.mtime_ns // 1_000_000_000,
        )

    def _read(
        self, found: Found, file: ModelFile, model_id: str | None, error: str | None
    ) -> Mapping[str, Any]:
        """Read a header and remember what it says."""
        facts = None
        if error is None:
            try:
                facts = read_facts(found.path)
            except InvalidModel as e:
                error = e.message
            except OSError as e:
                error = f"cannot be read: {e.strerror}"
        if model_id is None:
            taken = {r["id"] for r in self._db.execute("SELECT id FROM files")}
            name = found.name if found.source != "ollama" else slug(found.name)
            model_id = make_id(name, facts.quantization if facts else "", taken)
        row = {
            "path": found.path,
            "id": model_id,
            "size": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "hash": _hash(file),
            "facts": json.dumps(dataclasses.asdict(facts)) if facts else None,
            "error": error,
            "seen": int(time.time()),
        }
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO files VALUES "
                "(:path, :id, :size, :mtime_ns, :hash, :facts, :error, :seen)",
                row,
            )
        return row

    @staticmethod
    def _is_fresh(file: ModelFile) -> bool:
        return time.time() - file.mtime_ns / 1e9 < _FRESH_S

    def _backend(self, facts: ModelFacts | None) -> str | None:
        """The backend of the highest priority that runs the format."""
        able = [s for s in self._specs.values() if facts and facts.format in s.formats]
        return max(able, key=lambda s: s.priority).name if able else None

    # --- changing --------------------------------------------------------------------------

    def remove(self, model_id: str) -> list[str]:
        """Delete a model's files. Raises: ModelNotFound; Conflict when they are not ours."""
        self.rescan()
        wanted = model_id.casefold()
        for model in self._models.values():
            if wanted in {model.id.casefold(), *(a.casefold() for a in model.aliases)}:
                break
        else:
            raise ModelNotFound(self._unknown(model_id), param="model")
        own = os.path.realpath(self._own)
        for path in model.file.paths:
            if not os.path.abspath(path).startswith((f"{self._own}{os.sep}", f"{own}{os.sep}")):
                raise Conflict(
                    f"{model.id} lies at {path}, which is not ours to delete; remove it there"
                )
        for path in model.file.paths:
            os.unlink(path)
        with self._db:
            self._db.execute("DELETE FROM files WHERE path = ?", (model.file.path,))
        return list(model.file.paths)

    # --- measured --------------------------------------------------------------------------

    def record_load(self, model_id: str, seconds: float) -> None:
        self._record(model_id, "load_s", seconds)

    def load_seconds(self, model_id: str) -> float | None:
        """How long the last load took."""
        value = self._recorded(model_id, "load_s")
        return float(value) if value is not None else None

    def record_footprint(self, model_id: str, bytes_by_device: Mapping[str, int]) -> None:
        self._record(model_id, "footprint", dict(bytes_by_device))

    def footprint(self, model_id: str) -> dict[str, int] | None:
        """Bytes per device that the model took when it was last loaded."""
        value = self._recorded(model_id, "footprint")
        return dict(value) if value is not None else None

    def _record(self, model_id: str, what: str, value: Any) -> None:
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)",
                (model_id, what, json.dumps(value), time.time()),
            )

    def _recorded(self, model_id: str, what: str) -> Any:
        row = self._db.execute(
            "SELECT value FROM measured WHERE model = ? AND what = ?", (model_id, what)
        ).fetchone()
        return json.loads(row["value"]) if row else None

    # --- the database ----------------------------------------------------------------------

    def _open(self, path: Path) -> sqlite3.Connection:
        """Open it; one that is no database is set aside and begun anew."""
        if str(path) != ":memory:":
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise  # locked, no disk, no permission: its contents may be well
        except sqlite3.DatabaseError:
            number = 1
            while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
                number += 1
            os.replace(path, aside)
            for leftover in ("-wal", "-shm"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)
            self.set_aside = aside
            return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, isolation_level="IMMEDIATE")
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check failed")
        if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            db.execute("DROP TABLE IF EXISTS files")
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _facts_from(text: str | None) -> ModelFacts | None:
    if not text:
        return None
    data = json.loads(text)
    for key in ("tasks", "head_count_kv", "swa_layers"):
        data[key] = tuple(data[key])
    return ModelFacts(**data)


def _hash(file: ModelFile) -> str:
    digest = hashlib.sha256(str(file.size_bytes).encode())
    with contextlib.suppress(OSError), open(file.path, "rb") as f:
        digest.update(f.read(_HASHED))
    return digest.hexdigest()[:32]
