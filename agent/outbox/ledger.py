"""What the outbox counts, and the one transaction that changes it together with the rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from agent.outbox.limits import DropReason, Limits
from agent.outbox.message import Kind, OutboxMessage, Submission
from agent.outbox.ranges import Ranges, as_ranges
from agent.outbox.schema import (
    DEFAULT_CONTENT_ENCODING,
    DEFAULT_CONTENT_TYPE,
    ID_STEP,
    MESSAGE_COLUMNS,
    ROW_OVERHEAD_BYTES,
    SACRIFICE,
    SHELF_OF,
    SHELVES,
    MessageRow,
    Shelf,
    all_rows,
)

CounterKey = tuple[str, str, str, str]
"""What is counted, of which service, of which kind, and the detail: a sink or a reason."""

PRODUCERS_KEPT: Final = 512
RANGES_KEPT: Final = 64
"""Of one sink and shelf. What lies beyond is sent again after a crash, which the far end drops as a duplicate."""

PARKED_KEPT: Final = 1000
PARKED_SHARE: Final = 16
"""Parked messages take at most this part of the outbox's bytes."""

_DROP_ROWS: Final = 256
_INSERT_SQL: Final = {
    shelf.index: f"INSERT INTO {shelf.table} ({MESSAGE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608
    for shelf in SHELVES
}
_encode = msgspec.msgpack.Encoder().encode


def shelf_of_id(message_id: int) -> Shelf:
    """The shelf that a message's id names."""
    return SHELVES[message_id % ID_STEP]


class Ledger:
    """The counts, cursors and producers, as the last commit left them.

    Owned by the writer thread. `counters` may be copied from another thread: `dict(ledger.counters)` is one step of the
    interpreter.
    """

    def __init__(self, connection: sqlite3.Connection, boot: str) -> None:
        self.connection = connection
        self.stream: str = connection.execute("SELECT value FROM meta WHERE key = 'stream'").fetchone()[0]
        self.counters: dict[CounterKey, int] = {
            (what, service, kind, detail): value
            for what, service, kind, detail, value in connection.execute(
                "SELECT what, service, kind, detail, value FROM counter"
            )
        }
        self.producers: dict[str, tuple[int, int]] = {
            name: (highest, touched)
            for name, highest, touched in connection.execute("SELECT producer, highest, touched FROM producer")
        }
        self.sinks: dict[str, frozenset[Kind]] = {
            sink: frozenset(kinds.split(",")) for sink, kinds in connection.execute("SELECT sink, kinds FROM sink")
        }
        self.done: dict[tuple[str, int], Ranges] = {}
        for sink, shelf, first, last in connection.execute("SELECT sink, shelf, first, last FROM done"):
            self.done.setdefault((sink, shelf), Ranges()).add(first, last)
        self.boots: dict[int, str] = dict(all_rows(connection, "SELECT number, boot FROM boot"))
        numbers = {name: number for number, name in self.boots.items()}
        self.boot_is_stored = boot in numbers
        # Stored with the first message of this boot, so that opening writes nothing and works on a full disk.
        self.boot_number = numbers.get(boot, max(self.boots, default=0) + 1)
        self.boots[self.boot_number] = boot

    def count(self, what: str, service: str = "", kind: str = "", detail: str = "") -> int:
        """One counter; 0 when nothing was counted."""
        return self.counters.get((what, service, kind, detail), 0)

    def done_by(self, sink: str, shelf: Shelf) -> Ranges:
        """The rows of the shelf that this sink needs no more; not to be changed."""
        return self.done.get((sink, shelf.index)) or Ranges()


class Transaction:
    """Changes to rows and counts that become true together, or not at all.

    Used as a context manager by the writer thread. The ledger in memory changes after the commit only, so that it and
    the file never differ.
    """

    def __init__(self, ledger: Ledger, limits: Limits, monotonic: float) -> None:
        self._ledger = ledger
        self._limits = limits
        self._now = monotonic
        self._execute = ledger.connection.execute
        self._counters: dict[CounterKey, int] = {}
        self._done: dict[tuple[str, int], Ranges] = {}
        self._producers: dict[str, int] = {}
        self._pruned: list[str] = []
        self._sinks: dict[str, frozenset[Kind]] = dict(ledger.sinks)
        self.appended: dict[int, list[MessageRow]] = {}
        """New rows by shelf index."""
        self.dropped: dict[int, list[tuple[int, int]]] = {}
        """Rows by shelf index that nobody will get."""

    def __enter__(self) -> Transaction:
        self._execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            try:
                self._write()
                self._execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            self._adopt()
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        # After some errors (disk full among them) SQLite has rolled back by itself.
        if self._ledger.connection.in_transaction:
            self._execute("ROLLBACK")

    # ---- what the writer asks for

    def append(self, submissions: Sequence[Submission], wall: float, monotonic: float) -> list[int]:
        """Put messages on their shelves; their sequences, 0 for a hand-in that is stored already."""
        sequences: list[int] = []
        boot = self._ledger.boot_number
        for submission in submissions:
            if submission.producer and not self._first_time(submission):
                self._add("repeated", submission.service, submission.kind)
                sequences.append(0)
                continue
            service = submission.service
            shelf = SHELF_OF[submission.kind, submission.lane]
            sequence = self._add("submitted", service, submission.kind)
            properties = _encode(submission.properties) if submission.properties else None
            row: MessageRow = (
                self._add("last", "", shelf.kind, shelf.lane),
                boot,
                service,
                sequence,
                wall,
                monotonic,
                submission.ttl_seconds,
                None if submission.content_type == DEFAULT_CONTENT_TYPE else submission.content_type,
                None if submission.content_encoding == DEFAULT_CONTENT_ENCODING else submission.content_encoding,
                properties,
                submission.payload,
                len(submission.payload) + len(service) + len(properties or b"") + ROW_OVERHEAD_BYTES,
            )
            self.appended.setdefault(shelf.index, []).append(row)
            sequences.append(sequence)
        return sequences

    def acknowledge(self, sink: str, messages: Iterable[OutboxMessage]) -> None:
        """Count messages as arrived at a sink's far end; delete those that no other sink waits for."""
        if sink not in self._sinks:
            return
        rows: dict[int, list[int]] = {}
        for message in messages:
            row, index = divmod(message.id, ID_STEP)
            if row not in self._ranges(sink, index):
                self._add("acknowledged", message.service, message.kind, sink)
                rows.setdefault(index, []).append(row)
        for index, numbers in rows.items():
            self._finish(sink, SHELVES[index], as_ranges(numbers))

    def park(self, sink: str, message: OutboxMessage, reason: str, wall: float) -> None:
        """Keep a copy of a message that the sink's far end refuses for ever, and count it as done for this sink."""
        row, index = divmod(message.id, ID_STEP)
        if sink not in self._sinks or row in self._ranges(sink, index):
            return
        shelf = SHELVES[index]
        columns = "service, sequence, wall, monotonic, ttl, content_type, content_encoding, properties, payload, size"
        self._execute(
            f"INSERT INTO parked (sink, shelf, reason, parked_wall, row, boot, {columns})"  # noqa: S608
            f" SELECT ?, ?, ?, ?, m.id, b.boot, {columns} FROM {shelf.table} m JOIN boot b ON b.number = m.boot"
            " WHERE m.id = ?",
            (sink, index, reason, wall, row),
        )
        self._add("parked", message.service, message.kind, sink)
        self._finish(sink, shelf, [(row, row)])
        self._trim_parked()

    def register(self, sink: str, kinds: frozenset[Kind]) -> None:
        """Hold messages of these kinds until the sink has acknowledged them."""
        if self._sinks.get(sink) == kinds:
            return
        self._sinks[sink] = kinds
        self._execute("INSERT OR REPLACE INTO sink VALUES (?, ?)", (sink, ",".join(sorted(kinds))))
        for shelf in SHELVES:
            self._reclaim(shelf)

    def forget(self, sink: str) -> None:
        """Hold nothing for this sink any more."""
        if self._sinks.pop(sink, None) is None:
            return
        self._execute("DELETE FROM sink WHERE sink = ?", (sink,))
        for shelf in SHELVES:
            self._done[sink, shelf.index] = Ranges()
            self._reclaim(shelf)

    def drop_old(self) -> bool:
        """Drop some of what has outlived its own time to live or the outbox's; whether there may be more."""
        more = False
        for shelf in SHELVES:
            more |= self._drop_expired(shelf)
            if self._limits.age_seconds is not None:
                more |= self._drop_aged(shelf, self._limits.age_seconds)
        return more

    # ---- within the transaction

    def _get(self, key: CounterKey) -> int:
        value = self._counters.get(key)
        return self._ledger.counters.get(key, 0) if value is None else value

    def _add(self, what: str, service: str = "", kind: str = "", detail: str = "", amount: int = 1) -> int:
        key = (what, service, kind, detail)
        value = self._counters.get(key)
        if value is None:
            value = self._ledger.counters.get(key, 0)
        value += amount
        self._counters[key] = value
        return value

    def _ranges(self, sink: str, index: int) -> Ranges:
        key = (sink, index)
        ranges = self._done.get(key)
        if ranges is None:
            known = self._ledger.done.get(key)
            ranges = self._done[key] = Ranges() if known is None else known.copy()
        return ranges

    def _wanting(self, kind: Kind) -> list[str]:
        return [sink for sink, kinds in self._sinks.items() if kind in kinds]

    def _first_time(self, submission: Submission) -> bool:
        name = submission.producer
        highest = self._producers.get(name)
        if highest is None:
            highest = self._ledger.producers.get(name, (0, 0))[0]
        if submission.producer_sequence <= highest:
            return False
        self._producers[name] = submission.producer_sequence
        return True

    def _finish(self, sink: str, shelf: Shelf, ranges: Iterable[tuple[int, int]]) -> None:
        done = self._ranges(sink, shelf.index)
        others = [self._ranges(other, shelf.index) for other in self._wanting(shelf.kind) if other != sink]
        for first, last in ranges:
            done.add(first, last)
            self._delete_common(shelf, [(first, last)], others)

    def _reclaim(self, shelf: Shelf) -> None:
        wanting = self._wanting(shelf.kind)
        if wanting:
            first, *others = (self._ranges(sink, shelf.index) for sink in wanting)
            self._delete_common(shelf, first.pairs(), others)

    def _delete_common(self, shelf: Shelf, parts: list[tuple[int, int]], others: Iterable[Ranges]) -> None:
        for other in others:
            parts = [common for first, last in parts for common in other.common(first, last)]
        for first, last in parts:
            deleted = self._execute(
                f"DELETE FROM {shelf.table} WHERE id BETWEEN ? AND ? RETURNING size",  # noqa: S608
                (first, last),
            ).fetchall()
            self._take_off(shelf, [size for (size,) in deleted])

    def _take_off(self, shelf: Shelf, sizes: list[int]) -> None:
        if sizes:
            self._add("messages", "", shelf.kind, shelf.lane, -len(sizes))
            self._add("bytes", "", shelf.kind, shelf.lane, -sum(sizes))

    def _drop(self, shelf: Shelf, condition: str, parameters: tuple[float, ...], reason: DropReason) -> int:
        """Delete rows, count them as dropped, and end every sink's wait for them; how many it were."""
        gone = self._execute(
            f"DELETE FROM {shelf.table} WHERE {condition} RETURNING id, service, size",  # noqa: S608
            parameters,
        ).fetchall()
        for _, service, _ in gone:
            self._add("dropped", service, shelf.kind, reason)
        self._take_off(shelf, [size for _, _, size in gone])
        ranges = as_ranges(row for row, _, _ in gone)
        for sink in self._wanting(shelf.kind):
            done = self._ranges(sink, shelf.index)
            for first, last in ranges:
                done.add(first, last)
        self.dropped.setdefault(shelf.index, []).extend(ranges)
        return len(gone)

    def _drop_expired(self, shelf: Shelf) -> bool:
        boot = self._ledger.boot_number
        more = False
        for condition, parameters in (
            ("boot = ? AND monotonic + ttl < ?", (boot, self._now)),
            # How long ago the earlier boot ended is not known: this boot's time is the least the message has waited.
            ("boot < ? AND ttl < ?", (boot, self._now)),
        ):
            expired = f"SELECT id FROM {shelf.table} WHERE ttl IS NOT NULL AND {condition} LIMIT {_DROP_ROWS}"  # noqa: S608
            more |= self._drop(shelf, f"id IN ({expired})", parameters, "expired") == _DROP_ROWS
        return more

    def _drop_aged(self, shelf: Shelf, age_seconds: float) -> bool:
        heads = self._heads(shelf, "boot, monotonic")
        last = 0
        for row, boot, monotonic in heads:
            since = monotonic if boot == self._ledger.boot_number else 0.0
            if self._now - since <= age_seconds:
                break
            last = row
        if last:
            self._drop(shelf, "id <= ?", (last,), "age")
        return len(heads) == _DROP_ROWS and last == heads[-1][0]

    def _heads(self, shelf: Shelf, columns: str) -> list[Any]:
        return all_rows(
            self._ledger.connection,
            f"SELECT id, {columns} FROM {shelf.table} ORDER BY id LIMIT {_DROP_ROWS}",  # noqa: S608
        )

    def _make_room(self) -> None:
        if self._bytes() <= self._limits.bytes:
            return
        # A little more than needed, so that a full outbox does not do this for each message.
        target = self._limits.bytes - self._limits.bytes // 256
        while self._bytes() > target and self.drop_old():
            pass
        for shelf in SACRIFICE:
            while (excess := self._bytes() - target) > 0:
                last = 0
                for row, size in self._heads(shelf, "size"):
                    last = row
                    excess -= size
                    if excess <= 0:
                        break
                if not last:
                    break
                self._drop(shelf, "id <= ?", (last,), "full")

    def _bytes(self) -> int:
        return sum(self._get(("bytes", "", shelf.kind, shelf.lane)) for shelf in SHELVES)

    def _trim_parked(self) -> None:
        most = self._limits.bytes // PARKED_SHARE
        count, size = self._execute("SELECT count(*), coalesce(sum(size), 0) FROM parked").fetchone()
        while count > PARKED_KEPT or (size > most and count > 1):
            (freed,) = self._execute(
                "DELETE FROM parked WHERE number = (SELECT min(number) FROM parked) RETURNING size"
            ).fetchone()
            count, size = count - 1, size - freed

    def _write(self) -> None:
        for index, rows in self.appended.items():
            shelf = SHELVES[index]
            self._ledger.connection.executemany(_INSERT_SQL[index], rows)
            self._add("messages", "", shelf.kind, shelf.lane, len(rows))
            self._add("bytes", "", shelf.kind, shelf.lane, sum(row[11] for row in rows))
        if self.appended:
            if not self._ledger.boot_is_stored:
                self._enter_boot()
            self._make_room()
        if self._producers:
            touched = self._add("producers_touched")
            self._ledger.connection.executemany(
                "INSERT OR REPLACE INTO producer VALUES (?, ?, ?)",
                [(name, highest, touched) for name, highest in self._producers.items()],
            )
        if len(self._ledger.producers) > 2 * PRODUCERS_KEPT:
            self._prune_producers()
        for (sink, index), ranges in self._done.items():
            known = self._ledger.done.get((sink, index))
            pairs = ranges.pairs()
            if known is None or known.pairs() != pairs:
                self._execute("DELETE FROM done WHERE sink = ? AND shelf = ?", (sink, index))
                self._ledger.connection.executemany(
                    "INSERT INTO done VALUES (?, ?, ?, ?)",
                    [(sink, index, first, last) for first, last in pairs[:RANGES_KEPT]],
                )
        self._ledger.connection.executemany(
            "INSERT OR REPLACE INTO counter VALUES (?, ?, ?, ?, ?)",
            [(*key, value) for key, value in self._counters.items()],
        )

    def _enter_boot(self) -> None:
        oldest = (heads[0][1] for shelf in SHELVES if (heads := self._heads(shelf, "boot")))
        # An earlier boot is forgotten with its last message. The latest stays, so that numbers only rise.
        self._execute(
            "DELETE FROM boot WHERE number < ? AND number < (SELECT max(number) FROM boot)",
            (min(oldest, default=self._ledger.boot_number),),
        )
        number = self._ledger.boot_number
        self._execute("INSERT INTO boot VALUES (?, ?)", (number, self._ledger.boots[number]))

    def _prune_producers(self) -> None:
        by_age = sorted(self._ledger.producers.items(), key=lambda item: item[1][1])
        self._pruned = [name for name, _ in by_age[:-PRODUCERS_KEPT] if name not in self._producers]
        self._ledger.connection.executemany("DELETE FROM producer WHERE producer = ?", [(n,) for n in self._pruned])

    def _adopt(self) -> None:
        ledger = self._ledger
        ledger.boot_is_stored |= bool(self.appended)
        for name in self._pruned:
            del ledger.producers[name]
        ledger.counters.update(self._counters)
        ledger.done.update(self._done)
        ledger.sinks = self._sinks
        touched = ledger.count("producers_touched")
        ledger.producers.update((name, (highest, touched)) for name, highest in self._producers.items())
