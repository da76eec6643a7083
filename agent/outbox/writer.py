"""The outbox's one writer: a thread that owns the database and commits whoever waits together."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.clock import Clock
from agent.errors import StorageError
from agent.outbox.ledger import Ledger, Transaction
from agent.outbox.limits import Limits
from agent.outbox.message import Kind, OutboxMessage, Submission
from agent.outbox.reserve import Reserve
from agent.outbox.schema import (
    MESSAGE_COLUMNS,
    SHELVES,
    DamagedError,
    Durability,
    MessageRow,
    Shelf,
    all_rows,
    decode,
    describe,
    is_damage,
    open_database,
    set_aside,
)
from agent.outbox.stats import ParkedMessage

logger = logging.getLogger(__name__)

GROUP_OPERATIONS: Final = 4096
"""Operations in one commit, at most."""

GROUP_BYTES: Final = 2 << 20
"""Payload in one commit, at most, about."""

SWEEP_SECONDS: Final = 30.0
"""How often expired messages are looked for while there is something to do anyway."""

PAGE_ROWS: Final = 500
PAGE_BYTES: Final = 1 << 20

KEPT_ACKNOWLEDGEMENTS: Final = 256
"""Batches of acknowledgements that wait in memory for a disk that takes nothing."""

PAGE_SIZE: Final = 4096
PAGES_WITHOUT_LIMIT: Final = 1_073_741_823
"""The most that SQLite takes."""

VACUUM_PAGES: Final = 4096
VACUUM_WHEN_FREE_PAGES: Final = 8192

Answer = Callable[[list[int], StorageError | None], None]


@dataclass(slots=True)
class Append:
    """Messages to store, stamped at hand-in; answered with their sequences after the commit."""

    submissions: Sequence[Submission]
    wall: float
    monotonic: float
    answer: Answer


@dataclass(slots=True)
class Acknowledge:
    """Messages that arrived at a sink's far end."""

    sink: str
    messages: Sequence[OutboxMessage]


@dataclass(slots=True)
class Park:
    """A message that a sink's far end refuses for ever."""

    sink: str
    message: OutboxMessage
    reason: str
    wall: float


@dataclass(slots=True)
class Register:
    """A sink and what it wants; None: it wants nothing any more."""

    sink: str
    kinds: frozenset[Kind] | None


@dataclass(slots=True)
class Sweep:
    """Something has expired: drop it now."""


@dataclass(slots=True)
class Load:
    """The next page of a shelf for a sink; answered with its rows and whether these were the last."""

    sink: str
    shelf: Shelf
    after: int
    answer: Callable[[Shelf, list[MessageRow], bool], None]


@dataclass(slots=True)
class Read:
    """A question to the database, asked by the writer after all that was queued before it."""

    question: Callable[[Ledger], Any]
    answer: Callable[[Any, StorageError | None], None]


@dataclass(slots=True)
class Stop:
    """The last operation."""


Change = Acknowledge | Park | Register | Sweep
Operation = Append | Change | Load | Read | Stop


@dataclass(frozen=True, slots=True)
class Opened:
    """What the loop needs to know of a file that was opened."""

    stream: str
    boots: dict[int, str]
    recovered_from: Path | None


class Writer:
    """The thread. Everything public is called on the loop; `committed` and `opened` are called on the loop too.

    Args:
        path: the file, or None for memory.
        committed: gets the new rows and the dropped row ranges of each commit, by shelf index.
        opened: called when a damaged file was replaced while running.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Clock,
        durability: Durability,
        limits: Limits,
        check_seconds: float,
        committed: Callable[[dict[int, list[MessageRow]], dict[int, list[tuple[int, int]]]], None],
        opened: Callable[[Opened], None],
    ) -> None:
        self._path = path
        self._clock = clock
        self._boot = clock.boot_id()
        self._durability = durability
        self._limits = limits
        self._check_seconds = check_seconds
        self._committed = committed
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="outbox-writer", daemon=True)
        self._ready: asyncio.Future[Opened] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._kept: list[Change] = []
        self._registered: dict[str, frozenset[Kind] | None] = {}
        self._reserve: Reserve | None = None
        self._growth_is_limited = False
        self._swept = float("-inf")
        self.ledger: Ledger

    async def start(self) -> Opened:
        """Start the thread and open the file; raises StorageError."""
        self._thread.start()
        return await self._ready

    def put(self, operation: Operation) -> None:
        """Queue an operation; operations of one caller are done in order."""
        self._queue.put(operation)

    async def stop(self) -> None:
        """Do what is queued, close the file and end the thread."""
        self._queue.put(Stop())
        await asyncio.wait([self._ended])
        # Whoever watches has heard of it.
        self._ended.exception()

    async def watch(self) -> None:
        """Return when the thread was stopped; raise StorageError when it failed."""
        await asyncio.shield(self._ended)

    # ---- the thread

    def _main(self) -> None:
        try:
            self.ledger, recovered_from = self._open()
        except StorageError as error:
            self._call(_fail, self._ready, error)
            self._deliver()
            return
        self._call(_resolve, self._ready, Opened(self.ledger.stream, dict(self.ledger.boots), recovered_from))
        self._deliver()
        try:
            stopping = False
            while not stopping:
                group, stopping = self._next_group()
                self._process(group)
                self._deliver()
        except Exception as error:
            # The thread's edge. Whoever waits for a commit would wait for ever: the agent has to end and start again.
            logger.critical("The outbox's writer failed.", exc_info=True, extra={"action": "outbox_failed"})
            failure = StorageError(
                f"The outbox's writer failed ({type(error).__name__}: {error}); the agent starts again."
            )
            self._call(_fail, self._ended, failure)
        else:
            self._call(_resolve, self._ended, None)
        self._close()
        self._deliver()

    def _next_group(self) -> tuple[list[Operation], bool]:
        group = [self._queue.get()]
        size = 0
        while len(group) < GROUP_OPERATIONS and size < GROUP_BYTES:
            last = group[-1]
            if isinstance(last, Append):
                size += sum(len(submission.payload) for submission in last.submissions)
            elif isinstance(last, Stop):
                break
            try:
                group.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return group, isinstance(group[-1], Stop)

    def _process(self, group: list[Operation]) -> None:
        appends = [operation for operation in group if isinstance(operation, Append)]
        changes = [operation for operation in group if isinstance(operation, Change)]
        for change in changes:
            if isinstance(change, Register):
                self._registered[change.sink] = change.kinds
        if appends or changes or self._kept:
            self._store(appends, changes)
        for operation in group:
            if isinstance(operation, Load | Read):
                self._answer(operation)

    def _store(self, appends: list[Append], changes: list[Change]) -> None:
        """Commit all together; without the appends when there is no room for them, so that room can be made."""
        changes, self._kept = self._kept + changes, []
        try:
            self._commit(appends, changes)
        except sqlite3.Error as error:
            if is_damage(error):
                # The old file's row numbers mean nothing in the new one.
                changes = []
                self._replace(error)
            else:
                self._make_journal_reusable()
            try:
                self._commit(appends, changes)
            except sqlite3.Error as second:
                refusal = StorageError(describe(second, self._path))
                for append in appends:
                    self._call(append.answer, [], refusal)
                self._store_changes(changes)

    def _store_changes(self, changes: list[Change]) -> None:
        try:
            if changes:
                self._commit([], changes)
        except sqlite3.Error:
            self._store_changes_on_the_reserve(changes)

    def _store_changes_on_the_reserve(self, changes: list[Change]) -> None:
        if self._reserve is not None and self._reserve.release():
            self._make_journal_reusable()
            # From here on only what deletions have freed within the file is used, so that they remain possible.
            self._limit_growth(True)
            logger.warning("The disk is full; the outbox lives on its reserve.", extra={"action": "outbox_reserve"})
        for index, change in enumerate(changes):
            try:
                # One by one: a small transaction needs little of the journal.
                self._commit([], [change])
            except sqlite3.Error as error:
                logger.warning("%s", describe(error, self._path), extra={"action": "outbox_full"})
                self._keep(changes[index:])
                return

    def _keep(self, changes: list[Change]) -> None:
        """Try these again with the next commit."""
        acknowledged = [change for change in changes if isinstance(change, Acknowledge)]
        # What is forgotten here is sent again, and dropped by the far end as a duplicate.
        self._kept = [change for change in changes if not isinstance(change, Acknowledge)]
        self._kept += acknowledged[-KEPT_ACKNOWLEDGEMENTS:]

    def _answer(self, operation: Load | Read) -> None:
        try:
            if isinstance(operation, Load):
                self._call(operation.answer, operation.shelf, *self._page(operation))
            else:
                self._call(operation.answer, operation.question(self.ledger), None)
        except sqlite3.Error as error:
            if is_damage(error):
                self._replace(error)
            if isinstance(operation, Load):
                # Neither rows nor the end: the feed asks again when something happens.
                self._call(operation.answer, operation.shelf, [], False)
            else:
                self._call(operation.answer, None, StorageError(describe(error, self._path)))

    def _commit(self, appends: list[Append], changes: Iterable[Change]) -> None:
        answers: list[tuple[Answer, list[int]]] = []
        if appends:
            self._mind_the_disk()
        now = self._clock.monotonic()
        sweep_due = now - self._swept >= SWEEP_SECONDS
        with Transaction(self.ledger, self._limits, now) as transaction:
            for change in changes:
                if isinstance(change, Acknowledge):
                    transaction.acknowledge(change.sink, change.messages)
                elif isinstance(change, Park):
                    transaction.park(change.sink, change.message, change.reason, change.wall)
                elif isinstance(change, Sweep):
                    sweep_due = True
                elif change.kinds is None:
                    transaction.forget(change.sink)
                else:
                    transaction.register(change.sink, change.kinds)
            swept = sweep_due and not transaction.drop_old()
            for append in appends:
                sequences = transaction.append(append.submissions, append.wall, append.monotonic)
                answers.append((append.answer, sequences))
        if swept:
            self._swept = now
            self._shrink()
        if transaction.appended or transaction.dropped:
            self._call(self._committed, transaction.appended, transaction.dropped)
        for answer, sequences in answers:
            self._call(answer, sequences, None)

    def _page(self, load: Load) -> tuple[list[MessageRow], bool]:
        """A page of rows after `load.after` that the sink still needs, and whether the shelf has no more."""
        end = self.ledger.count("last", "", load.shelf.kind, load.shelf.lane)
        rows: list[MessageRow] = []
        size = 0
        for first, last in self.ledger.done_by(load.sink, load.shelf).gaps(load.after + 1, end):
            # A cursor, not fetchall: large messages end the page before its row count does.
            for row in self.ledger.connection.execute(
                f"SELECT {MESSAGE_COLUMNS} FROM {load.shelf.table} WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608
                (first, last),
            ):
                rows.append(row)
                size += row[11]
                if len(rows) >= PAGE_ROWS or size >= PAGE_BYTES:
                    return rows, row[0] == end
        return rows, True

    def _make_journal_reusable(self) -> None:
        """Move the journal into the file, so that a commit on a full disk finds the journal's own space free."""
        try:
            self.ledger.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            logger.warning("%s", describe(error, self._path), extra={"action": "outbox_checkpoint"})

    def _shrink(self) -> None:
        """Give a part of the file's free pages back to the file system."""
        execute = self.ledger.connection.execute
        try:
            if execute("PRAGMA freelist_count").fetchone()[0] > VACUUM_WHEN_FREE_PAGES:
                execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        except sqlite3.Error as error:
            logger.warning("%s", describe(error, self._path), extra={"action": "outbox_shrink"})

    def _open(self) -> tuple[Ledger, Path | None]:
        recovered_from = None
        try:
            ledger = self._open_once()
        except (DamagedError, sqlite3.Error) as error:
            if self._path is None or not (isinstance(error, DamagedError) or is_damage(error)):
                raise StorageError(f"The outbox {self._path} could not be opened ({error}); check the disk.") from error
            recovered_from = set_aside(self._path)
            logger.error(
                "The outbox %s is damaged (%s); it is now %s and a new one was started.",
                self._path,
                error,
                recovered_from.name,
                extra={"action": "outbox_damaged"},
            )
            ledger = self._open_once()
        return ledger, recovered_from

    def _open_once(self, rows_given: int = 0) -> Ledger:
        connection = open_database(
            self._path, durability=self._durability, check_seconds=self._check_seconds, rows_given=rows_given
        )
        try:
            ledger = Ledger(connection, self._boot)
        except BaseException:
            connection.close()
            raise
        if self._path is not None:
            self._reserve = Reserve(self._path.with_name(self._path.name + ".reserve"))
            connection.execute(f"PRAGMA wal_autocheckpoint={self._reserve.journal_bytes // PAGE_SIZE}")
            connection.execute(f"PRAGMA journal_size_limit={2 * self._reserve.journal_bytes}")
            self._limit_growth(not self._reserve.hold(), connection)
        return ledger

    def _limit_growth(self, limited: bool, connection: sqlite3.Connection | None = None) -> None:
        execute = (connection or self.ledger.connection).execute
        pages = execute("PRAGMA page_count").fetchone()[0] if limited else PAGES_WITHOUT_LIMIT
        execute(f"PRAGMA max_page_count={pages}")
        self._growth_is_limited = limited

    def _mind_the_disk(self) -> None:
        """Let the file grow while the disk has room for what follows: the journal, and the file taking it over."""
        reserve = self._reserve
        if reserve is None:
            return
        free = reserve.free_bytes()
        if self._growth_is_limited:
            if free > 3 * reserve.journal_bytes and reserve.hold():
                self._limit_growth(False)
        elif free < reserve.journal_bytes:
            self._limit_growth(True)

    def _replace(self, error: sqlite3.Error) -> None:
        """Set a file aside that turned out to be damaged while it was in use, and go on with a new one."""
        self.ledger.connection.close()
        if self._path is None:
            return
        try:
            aside = set_aside(self._path)
            logger.error(
                "The outbox %s is damaged (%s); it is now %s and a new one was started.",
                self._path,
                error,
                aside.name,
                extra={"action": "outbox_damaged"},
            )
            # Row numbers go on, so that what a sink still holds of the old file never means a message of the new one.
            rows_given = max(self.ledger.count("last", "", shelf.kind, shelf.lane) for shelf in SHELVES)
            self.ledger = self._open_once(rows_given)
            self._commit([], [Register(sink, kinds) for sink, kinds in self._registered.items()])
        except (StorageError, DamagedError, sqlite3.Error) as failure:
            # Every append is refused from here on, with the reason; nothing is lost silently.
            logger.critical("The outbox could not be replaced: %s", failure, extra={"action": "outbox_lost"})
            return
        self._call(self._opened, Opened(self.ledger.stream, dict(self.ledger.boots), aside))

    def _close(self) -> None:
        try:
            self.ledger.connection.close()
        except sqlite3.Error as error:
            logger.warning("%s", describe(error, self._path), extra={"action": "outbox_close"})

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        self._calls.append((function, arguments))

    def _deliver(self) -> None:
        calls, self._calls = self._calls, []
        if not calls:
            return
        try:
            self._loop.call_soon_threadsafe(_schedule, self._loop, calls)
        except RuntimeError:
            # The loop was closed without closing the outbox: nobody waits any more, and the file is as committed.
            logger.debug("the loop is gone", exc_info=True)


def _schedule(loop: asyncio.AbstractEventLoop, calls: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    # Each on its own, so that one that fails is reported by the loop and the others still happen.
    for function, arguments in calls:
        loop.call_soon(function, *arguments)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def read_parked(ledger: Ledger) -> list[ParkedMessage]:
    """The parked messages, oldest first."""
    parked = []
    for sink, shelf_index, reason, parked_wall, boot, *row in all_rows(
        ledger.connection,
        "SELECT sink, shelf, reason, parked_wall, boot, row, 0, service, sequence, wall, monotonic, ttl,"
        " content_type, content_encoding, properties, payload, size FROM parked ORDER BY number",
    ):
        message = decode(SHELVES[shelf_index], tuple(row), node="", stream=ledger.stream, boot=boot)
        parked.append(ParkedMessage(sink=sink, reason=reason, parked_wall=parked_wall, message=message))
    return parked
