"""What must survive the death of the emulator, in one SQLite file.

One thread owns the connection. It takes whatever work has gathered, does it in one transaction, and reports back to
the loop after the commit: a message is acknowledged to its device only then. WAL with `synchronous=NORMAL` loses
nothing when the process is killed (a power cut may take the last commits).
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.errors import StorageError
from emulator.report import Ledger, Report, StreamKey, Tally, latency_ms
from emulator.telemetry import Telemetry

logger = logging.getLogger(__name__)

T = TypeVar("T")
_SCHEMA_VERSION = 1
_BATCH_LIMIT = 1000
_PRUNE_EVERY = 1000

_SCHEMA = """
CREATE TABLE device (id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE cloud_message (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, document BLOB NOT NULL);
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, arrived REAL NOT NULL, payload BLOB NOT NULL,
    system TEXT NOT NULL, properties TEXT NOT NULL, tally INTEGER, duplicate INTEGER NOT NULL, latency_ms REAL);
CREATE INDEX message_by_device ON message (device, id);
CREATE TABLE tally (
    id INTEGER PRIMARY KEY, node TEXT NOT NULL, stream TEXT NOT NULL, service TEXT NOT NULL,
    received INTEGER NOT NULL, first_arrival REAL NOT NULL, last_arrival REAL NOT NULL,
    UNIQUE (node, stream, service));
CREATE TABLE sequence_range (
    tally INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (tally, first)) WITHOUT ROWID;
CREATE TABLE untracked (only INTEGER PRIMARY KEY CHECK (only = 1), received INTEGER NOT NULL);
INSERT INTO untracked VALUES (1, 0);
"""
_SELECT_MESSAGES = """
SELECT id, device, arrived, payload, system, properties, duplicate FROM message
WHERE id > ? ORDER BY id LIMIT ?
"""
_SELECT_DEVICE_MESSAGES = """
SELECT id, device, arrived, payload, system, properties, duplicate FROM message
WHERE device = ? AND id > ? ORDER BY id LIMIT ?
"""


@dataclass(slots=True)
class _Append:
    """A message to store, and whom to tell."""

    device: str
    arrived: float
    payload: bytes
    system: dict[str, str]
    properties: dict[str, str]
    done: Callable[[bool], None]


@dataclass(slots=True)
class _Call:
    """Work on the connection, and the future of its result."""

    work: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class Store:
    """The emulator's database. Its methods are for the loop that opened it."""

    def __init__(self, path: Path, *, keep_messages: int) -> None:
        self._path = path
        self._keep = keep_messages
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[_Append | _Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="emulator-store", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ledger = Ledger()
        self._tally_ids: dict[StreamKey, int] = {}
        self._ledger_is_stale = False
        self._pruned_at = 0
        self._closing = False
        self.last_id = 0
        """The newest committed message's number."""
        self._arrival: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(cls, path: Path, *, keep_messages: int = 100_000) -> Store:
        """Open or make the file at `path`; of the messages' contents the newest `keep_messages` are kept.

        Raises StorageError when it cannot be opened, is no database, or is of another version of the emulator.
        """
        store = cls(path, keep_messages=keep_messages)
        store._thread.start()
        await store._opened
        return store

    def append(
        self,
        *,
        device: str,
        arrived: float,
        payload: bytes,
        system: dict[str, str],
        properties: dict[str, str],
        done: Callable[[bool], None],
    ) -> None:
        """Store a message; `done(True)` is called on the loop after its commit, `done(False)` if that failed."""
        self._put(_Append(device, arrived, payload, system, properties, done))

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in the next transaction; return its result after the commit. Raises StorageError."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(_Call(work, future))
        return await future

    async def messages(self, *, device: str | None = None, after: int = 0, limit: int = 1000) -> list[Telemetry]:
        """Up to `limit` messages that came after number `after`, oldest first."""

        def select(connection: sqlite3.Connection) -> list[Telemetry]:
            if device is None:
                rows = connection.execute(_SELECT_MESSAGES, (after, limit))
            else:
                rows = connection.execute(_SELECT_DEVICE_MESSAGES, (device, after, limit))
            return [_telemetry(row) for row in rows]

        return await self.call(select)

    async def report(self) -> Report:
        """The ledger as of the last commit."""
        return await self.call(lambda connection: self._ledger.report())

    async def arrival(self, after: int) -> None:
        """Wait until a message with a number above `after` is stored. Raises StorageError when the store closes."""
        while self.last_id <= after:
            await asyncio.shield(self._arrival)
            if self._closing:
                raise StorageError(f"The emulator's database {self._path} is closed.")

    async def close(self) -> None:
        """Finish the work that was handed in, and close the file."""
        if not self._closing:
            self._closing = True
            self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        _succeed(self._arrival, None)

    def _put(self, item: _Append | _Call) -> None:
        if self._closing:
            raise StorageError(f"The emulator's database {self._path} is closed.")
        self._work.put(item)

    # From here on: the store's own thread.

    def _run(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, OSError) as error:
            self._tell(_fail, self._opened, _explain(self._path, error))
            return
        self._tell(_succeed, self._opened, None)
        try:
            while (batch := self._take()) is not None:
                self._commit(connection, batch)
        finally:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        # It holds device keys; SQLite gives its other files the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=5000")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
            else:
                self._check_version(version)
            self._load(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_version(self, version: int) -> None:
        if version != _SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} has format {version}, this emulator writes {_SCHEMA_VERSION}; "
                "give another --data directory."
            )

    def _load(self, connection: sqlite3.Connection) -> None:
        """Read the ledger as the last commit left it."""
        ledger = Ledger()
        ids: dict[StreamKey, int] = {}
        ranges: dict[int, list[tuple[int, int]]] = {}
        for tally, first, last in connection.execute("SELECT tally, first, last FROM sequence_range"):
            ranges.setdefault(tally, []).append((first, last))
        by_id: dict[int | None, Tally] = {}
        for number, node, stream, service, received, first, last in connection.execute(
            "SELECT id, node, stream, service, received, first_arrival, last_arrival FROM tally"
        ):
            key = StreamKey(node, stream, service)
            ids[key] = number
            tally_object = Tally(received=received, ranges=ranges.get(number, ()), first=first, last=last)
            ledger.tallies[key] = by_id[number] = tally_object
        (ledger.untracked,) = connection.execute("SELECT received FROM untracked").fetchone()
        for number, latency in connection.execute(
            "SELECT tally, latency_ms FROM message WHERE latency_ms IS NOT NULL AND NOT duplicate ORDER BY id"
        ):
            target = by_id[number].latencies_ms if number is not None else ledger.untracked_latencies_ms
            target.append(latency)
        self._ledger, self._tally_ids = ledger, ids
        self._ledger_is_stale = False
        (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()
        self.last_id = self._pruned_at = newest

    def _take(self) -> list[_Append | _Call] | None:
        first = self._work.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < _BATCH_LIMIT:
            try:
                item = self._work.get_nowait()
            except queue.Empty:
                break
            if item is None:
                # Close after this batch.
                self._work.put(None)
                break
            batch.append(item)
        return batch

    def _commit(self, connection: sqlite3.Connection, batch: list[_Append | _Call]) -> None:
        results: list[Any] = []
        try:
            if self._ledger_is_stale:
                self._load(connection)
            connection.execute("BEGIN IMMEDIATE")
            touched: set[StreamKey | None] = set()
            newest = self.last_id
            for item in batch:
                if isinstance(item, _Append):
                    newest, key = self._insert(connection, item)
                    touched.add(key)
                else:
                    results.append(item.work(connection))
            self._save_ledger(connection, touched)
            if newest - self._pruned_at >= _PRUNE_EVERY:
                connection.execute("DELETE FROM message WHERE id <= ?", (newest - self._keep,))
                self._pruned_at = newest
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # The ledger in memory is ahead of the file now; the next batch starts from the file's.
            self._ledger_is_stale = True
            failure = _explain(self._path, error)
            logger.error("%s", failure, extra={"action": "commit"})
            self._tell(self._failed, batch, failure)
        else:
            self._tell(self._committed, batch, results, newest)

    def _insert(self, connection: sqlite3.Connection, item: _Append) -> tuple[int, StreamKey | None]:
        latency = latency_ms(item.payload, item.arrived)
        key, new = self._ledger.record(item.properties, item.arrived, latency)
        tally = None
        if key is not None:
            tally = self._tally_ids.get(key)
            if tally is None:
                tally = self._tally_ids[key] = len(self._tally_ids) + 1
        cursor = connection.execute(
            "INSERT INTO message (device, arrived, payload, system, properties, tally, duplicate, latency_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                item.device,
                item.arrived,
                item.payload,
                msgspec.json.encode(item.system).decode(),
                msgspec.json.encode(item.properties).decode(),
                tally,
                not new,
                latency,
            ),
        )
        return cursor.lastrowid or 0, key

    def _save_ledger(self, connection: sqlite3.Connection, touched: set[StreamKey | None]) -> None:
        for key in touched:
            if key is None:
                connection.execute("UPDATE untracked SET received = ?", (self._ledger.untracked,))
                continue
            tally, number = self._ledger.tallies[key], self._tally_ids[key]
            connection.execute(
                "INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " received = excluded.received, last_arrival = excluded.last_arrival",
                (
                    number,
                    key.node,
                    key.stream,
                    key.service,
                    tally.received,
                    tally.first_arrival,
                    tally.last_arrival,
                ),
            )
            for first in tally.sequences.touched:
                last = tally.sequences.last_of(first)
                if last is None:
                    connection.execute("DELETE FROM sequence_range WHERE tally = ? AND first = ?", (number, first))
                else:
                    connection.execute("INSERT OR REPLACE INTO sequence_range VALUES (?, ?, ?)", (number, first, last))
            tally.sequences.touched.clear()

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop closed without closing the store: nobody is left to tell.
            logger.debug("the loop is gone", extra={"action": "tell"})

    # On the loop again.

    def _committed(self, batch: list[_Append | _Call], results: list[Any], newest: int) -> None:
        answers = iter(results)
        for item in batch:
            if isinstance(item, _Append):
                item.done(True)
            else:
                _succeed(item.future, next(answers))
        if newest > self.last_id:
            self.last_id = newest
            arrival, self._arrival = self._arrival, self._loop.create_future()
            _succeed(arrival, None)

    def _failed(self, batch: list[_Append | _Call], failure: StorageError) -> None:
        for item in batch:
            if isinstance(item, _Append):
                item.done(False)
            else:
                _fail(item.future, failure)


def _telemetry(row: tuple[Any, ...]) -> Telemetry:
    number, device, arrived, payload, system, properties, duplicate = row
    return Telemetry(
        id=number,
        device=device,
        arrived=arrived,
        payload=payload,
        system=msgspec.json.decode(system),
        properties=msgspec.json.decode(properties),
        duplicate=bool(duplicate),
    )


def _explain(path: Path, error: Exception) -> StorageError:
    if isinstance(error, StorageError):
        return error
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return StorageError(f"{path} is not the emulator's database; move it away and a new one is made.")
    return StorageError(f"The emulator's database {path} cannot be used: {error}.")


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
