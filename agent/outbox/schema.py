"""The outbox's file: its tables, how it is opened, checked and set aside."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from agent.errors import StorageError
from agent.outbox.message import Kind, Lane, OutboxMessage

Durability = Literal["crash", "power"]

APPLICATION_ID: Final = 0x4F757473
SCHEMA_VERSION: Final = 1

ROW_OVERHEAD_BYTES: Final = 64
"""What a row takes beside its texts and payload, about."""

CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class Shelf:
    """The messages of one kind and lane.

    They have a table of their own, so that each is appended at its end and freed at its start.
    """

    index: int
    kind: Kind
    lane: Lane

    @property
    def table(self) -> str:
        """The table's name."""
        return f"{self.kind}_{self.lane}"


SHELVES: Final[tuple[Shelf, ...]] = (
    Shelf(0, "fault", "live"),
    Shelf(1, "telemetry", "live"),
    Shelf(2, "tracking", "live"),
    Shelf(3, "fault", "bulk"),
    Shelf(4, "telemetry", "bulk"),
    Shelf(5, "tracking", "bulk"),
)
"""In the order in which a feed serves them. The index is part of every message's id, so it never changes."""

SACRIFICE: Final[tuple[Shelf, ...]] = tuple(SHELVES[index] for index in (5, 4, 2, 1, 3, 0))
"""In the order in which they lose their oldest messages when the outbox is full."""

SHELF_OF: Final[dict[tuple[Kind, Lane], Shelf]] = {(shelf.kind, shelf.lane): shelf for shelf in SHELVES}

ID_STEP: Final = 8
"""A message's id is its row number times this, plus its shelf's index."""

_MESSAGE_TABLE = """
CREATE TABLE {table} (
  id INTEGER PRIMARY KEY,
  boot INTEGER NOT NULL,
  service TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  wall REAL NOT NULL,
  monotonic REAL NOT NULL,
  ttl REAL,
  content_type TEXT,
  content_encoding TEXT,
  properties BLOB,
  payload BLOB NOT NULL,
  size INTEGER NOT NULL
);
CREATE INDEX {table}_expiry ON {table} (boot, monotonic + ttl) WHERE ttl IS NOT NULL;
"""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE boot (number INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE);
CREATE TABLE counter (
  what TEXT, service TEXT, kind TEXT, detail TEXT, value INTEGER NOT NULL,
  PRIMARY KEY (what, service, kind, detail)
) WITHOUT ROWID;
CREATE TABLE producer (producer TEXT PRIMARY KEY, highest INTEGER NOT NULL, touched INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sink (sink TEXT PRIMARY KEY, kinds TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE done (
  sink TEXT, shelf INTEGER, first INTEGER, last INTEGER NOT NULL,
  PRIMARY KEY (sink, shelf, first)
) WITHOUT ROWID;
CREATE TABLE parked (
  number INTEGER PRIMARY KEY,
  sink TEXT NOT NULL,
  shelf INTEGER NOT NULL,
  reason TEXT NOT NULL,
  parked_wall REAL NOT NULL,
  row INTEGER NOT NULL,
  boot TEXT NOT NULL,
  service TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  wall REAL NOT NULL,
  monotonic REAL NOT NULL,
  ttl REAL,
  content_type TEXT,
  content_encoding TEXT,
  properties BLOB,
  payload BLOB NOT NULL,
  size INTEGER NOT NULL
);
"""

MESSAGE_COLUMNS: Final = (
    "id, boot, service, sequence, wall, monotonic, ttl, content_type, content_encoding, properties, payload, size"
)

MessageRow = tuple[int, int, str, int, float, float, float | None, str | None, str | None, bytes | None, bytes, int]
"""A row of a message table, as `MESSAGE_COLUMNS`; defaults are stored as NULL, so that they take no space."""

DEFAULT_CONTENT_TYPE: Final = "application/json"
DEFAULT_CONTENT_ENCODING: Final = "utf-8"

_properties_decoder = msgspec.msgpack.Decoder(dict[str, str])


def decode(shelf: Shelf, row: MessageRow, *, node: str, stream: str, boot: str) -> OutboxMessage:
    """A row, as the sinks get it."""
    ttl = row[6]
    return OutboxMessage(
        id=row[0] * ID_STEP + shelf.index,
        node=node,
        stream=stream,
        boot=boot,
        service=row[2],
        sequence=row[3],
        kind=shelf.kind,
        lane=shelf.lane,
        payload=row[10],
        content_type=DEFAULT_CONTENT_TYPE if row[7] is None else row[7],
        content_encoding=DEFAULT_CONTENT_ENCODING if row[8] is None else row[8],
        properties={} if row[9] is None else _properties_decoder.decode(row[9]),
        created_wall=row[4],
        created_monotonic=row[5],
        expires_wall=None if ttl is None else row[4] + ttl,
    )


class DamagedError(Exception):
    """The file is not a sound database; inside this package only."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is broken."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in CORRUPT_CODES


def describe(error: sqlite3.Error, path: Path | None) -> str:
    """One sentence about what went wrong with the file, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = "in memory" if path is None else str(path)
    if code == sqlite3.SQLITE_FULL:
        return f"The outbox {where} cannot grow because the disk is full; free some space, nothing stored is lost."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"The outbox {where} is in use by another process; stop that one first."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"The outbox {where} cannot be written ({error}); check the folder's owner and that it is not read-only."
    return f"The outbox {where} could not be written ({error}); check the disk and its free space."


def open_database(
    path: Path | None, *, durability: Durability, check_seconds: float, rows_given: int = 0
) -> sqlite3.Connection:
    """Open or make the file, check it, and bring it to this schema.

    Args:
        path: the file, or None for one in memory.
        durability: `crash` survives the end of any process, `power` also a power cut (a sync for each commit).
        check_seconds: how long the check of an old file may take; what was not looked at by then counts as sound.
        rows_given: a new file numbers its rows from the next one.

    Raises DamagedError when the file is broken; StorageError when it cannot be opened or a newer version wrote it.
    """
    try:
        if path is not None:
            # SQLite would create it readable for all; its -wal takes over this mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False, timeout=0
        )
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"The outbox {path} cannot be opened ({error}); check the folder's owner.") from error
    try:
        if _prepare(connection, path, durability=durability):
            _create(connection, rows_given)
        else:
            _check(connection, check_seconds)
    except sqlite3.Error as error:
        connection.close()
        if is_damage(error):
            raise DamagedError(str(error)) from error
        raise StorageError(describe(error, path)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None, *, durability: Durability) -> bool:
    """Set the connection up; whether the file is new."""
    execute = connection.execute
    # The agent alone has the file: no shared-memory index, no lock calls for each transaction.
    execute("PRAGMA locking_mode=EXCLUSIVE")
    version = int(execute("PRAGMA user_version").fetchone()[0])
    application = int(execute("PRAGMA application_id").fetchone()[0])
    fresh = not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"The outbox {path} was written by a newer Outstation (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version again, or move the file away to start an empty outbox."
        )
    if not fresh and application != APPLICATION_ID:
        raise StorageError(f"{path} is a database, but not an outbox; set another state directory or move it away.")
    if fresh:
        execute("PRAGMA auto_vacuum=INCREMENTAL")
    execute("PRAGMA journal_mode=WAL")
    execute(f"PRAGMA synchronous={'FULL' if durability == 'power' else 'NORMAL'}")
    execute("PRAGMA cache_size=-2048")
    execute("PRAGMA temp_store=MEMORY")
    return fresh


def _create(connection: sqlite3.Connection, rows_given: int) -> None:
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        execute(statement)
    for shelf in SHELVES:
        for statement in _MESSAGE_TABLE.format(table=shelf.table).split(";"):
            execute(statement)
        if rows_given:
            execute("INSERT INTO counter VALUES ('last', '', ?, ?, ?)", (shelf.kind, shelf.lane, rows_given))
    execute("INSERT INTO meta VALUES ('stream', ?)", (secrets.token_hex(6),))
    execute(f"PRAGMA application_id={APPLICATION_ID}")
    execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    execute("COMMIT")


def _check(connection: sqlite3.Connection, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 20_000)
    try:
        answer = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        connection.set_progress_handler(None, 0)
    if answer[0] != "ok":
        raise DamagedError(str(answer[0]))


def set_aside(path: Path) -> Path:
    """Give a damaged file a new name, `outbox.db.damaged-<n>`, with its journal, and return that name.

    Raises StorageError when the folder cannot be written.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        # The journal first: a new file must never meet the old one's journal.
        for suffix in ("-wal", "-shm", "-journal"):
            companion = path.with_name(path.name + suffix)
            if companion.exists():
                companion.rename(aside.with_name(aside.name + suffix))
        path.rename(aside)
    except OSError as error:
        raise StorageError(
            f"The outbox {path} is damaged and cannot be set aside ({error}); check the folder's owner and the disk."
        ) from error
    return aside


def all_rows(connection: sqlite3.Connection, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a query."""
    return connection.execute(sql, parameters).fetchall()
