"""What is remembered of models between runs, in SQLite: ids, facts, what was measured.

All of it can be found out again: a database that is broken is set aside, and one that cannot be
written (a full disk) costs the memory of what is new, not the service.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uml.protocol.errors import InternalError
from uml.protocol.models import ModelFacts
from uml.supervisor.names import make_id

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, id TEXT UNIQUE NOT NULL, size INTEGER, mtime_ns INTEGER,
    hash TEXT, facts TEXT, error TEXT, seen INTEGER
);
CREATE TABLE IF NOT EXISTS measured (
    model TEXT, what TEXT, value TEXT, at REAL, PRIMARY KEY (model, what)
);
CREATE TABLE IF NOT EXISTS footprints (
    hash TEXT, key TEXT, lives TEXT, at REAL, PRIMARY KEY (hash, key)
);
"""
#: Ways of running one model whose footprints are remembered.
_FOOTPRINTS = 32
#: Facts read by an older version of the readers are read again.
_VERSION = 3


@dataclass(frozen=True)
class Record:
    """What was read of the file at `path` when it had this size and time stamp."""

    path: str
    id: str
    size: int
    mtime_ns: int
    hash: str
    facts: ModelFacts | None
    error: str | None


class Records:
    """path: the database; ":memory:" for none. set_aside: where a broken one was moved to."""

    def __init__(self, path: Path) -> None:
        self.set_aside: Path | None = None
        #: Path -> id of what could not be written.
        self._unsaved: dict[str, str] = {}
        self._db = self._open(path)

    def close(self) -> None:
        self._db.close()

    def get(self, path: str) -> Record | None:
        row = self._db.execute("SELECT * FROM files WHERE path = ?", (path,)).fetchone()
        return _record(row) if row else None

    def save(self, record: Record, name: str) -> Record:
        """Remember it. One without an id gets one that is free, and keeps it from now on."""
        if not record.id:
            record = dataclasses.replace(record, id=self._claim(record, name))
        try:
            with self._transaction():
                self._drop_outdated(record)
                self._db.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.path,
                        record.id,
                        record.size,
                        record.mtime_ns,
                        record.hash,
                        json.dumps(dataclasses.asdict(record.facts)) if record.facts else None,
                        record.error,
                        int(time.time()),
                    ),
                )
            self._unsaved.pop(record.path, None)
        except sqlite3.OperationalError:
            self._unsaved[record.path] = record.id
        return record

    def _claim(self, record: Record, name: str) -> str:
        """An id for a file that has none: the old one of a file that was moved, or a new one.

        A file that was deleted gives its id up; one whose whole folder is gone does not, since a
        disk may come back.
        """
        rows = self._db.execute("SELECT path, id, hash FROM files").fetchall()
        gone = [r for r in rows if not os.path.lexists(r["path"])]
        moved = [r["id"] for r in gone if record.hash and r["hash"] == record.hash]
        if moved:
            return str(moved[0])
        given_up = {r["id"] for r in gone if os.path.isdir(os.path.dirname(r["path"]))}
        taken = {r["id"] for r in rows} - given_up | set(self._unsaved.values())
        return make_id(name, record.facts.quantization if record.facts else "", taken)

    def _drop_outdated(self, record: Record) -> None:
        """What was measured of another file is not true of this one."""
        old = self._db.execute("SELECT hash FROM files WHERE path = ?", (record.path,)).fetchone()
        if old and old["hash"] != record.hash:
            self._db.execute("DELETE FROM measured WHERE model = ?", (record.id,))

    def forget(self, path: str) -> None:
        with suppress(sqlite3.OperationalError), self._transaction():
            self._db.execute("DELETE FROM files WHERE path = ?", (path,))

    def measure(self, model_id: str, what: str, value: Any) -> None:
        """Remember something measured, in place of what was measured before."""
        with suppress(sqlite3.OperationalError), self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)",
                (model_id, what, json.dumps(value), time.time()),
            )

    def measured(self, model_id: str, what: str) -> Any:
        row = self._db.execute(
            "SELECT value FROM measured WHERE model = ? AND what = ?", (model_id, what)
        ).fetchone()
        return json.loads(row["value"]) if row else None

    def save_footprint(self, content_hash: str, key: str, lives: list[dict[str, int]]) -> None:
        """Remember what a file took when it was run so; without lives, forget it."""
        with suppress(sqlite3.OperationalError), self._transaction():
            self._db.execute(
                "DELETE FROM footprints WHERE hash = ? AND key = ?", (content_hash, key)
            )
            if lives:
                row = content_hash, key, json.dumps(lives), time.time()
                self._db.execute("INSERT INTO footprints VALUES (?, ?, ?, ?)", row)
                self._db.execute(
                    "DELETE FROM footprints WHERE hash = ? AND key NOT IN (SELECT key FROM "
                    "footprints WHERE hash = ? ORDER BY at DESC LIMIT ?)",
                    (content_hash, content_hash, _FOOTPRINTS),
                )

    def footprint(self, content_hash: str, key: str) -> list[dict[str, int]] | None:
        row = self._db.execute(
            "SELECT lives FROM footprints WHERE hash = ? AND key = ?", (content_hash, key)
        ).fetchone()
        return json.loads(row["lives"]) if row else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def _open(self, path: Path) -> sqlite3.Connection:
        """Open it; one that is no database is set aside and begun anew.

        Raises: InternalError, when it cannot be used for another reason.
        """
        if str(path) != ":memory:":
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.OperationalError as e:  # locked, no permission: it may well be sound
            raise InternalError(f"{path} cannot be used: {e}") from e
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
    db = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check failed")
        db.executescript(_SCHEMA)
        if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            db.execute("UPDATE files SET size = -1")  # the ids stay
            db.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _record(row: Mapping[str, Any]) -> Record:
    """What a row says; facts nobody understands any more count as never read."""
    facts, size = None, row["size"]
    if row["facts"]:
        try:
            data = json.loads(row["facts"])
            for key in ("tasks", "head_count_kv", "swa_layers"):
                data[key] = tuple(data[key])
            facts = ModelFacts(**data)
        except (ValueError, TypeError, KeyError):
            size = -1
    return Record(row["path"], row["id"], size, row["mtime_ns"], row["hash"], facts, row["error"])
