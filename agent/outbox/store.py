"""The outbox: what a service submitted stays here until every far end has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agent.clock import Clock
from agent.errors import StorageError
from agent.outbox.feed import Feed
from agent.outbox.ledger import Ledger
from agent.outbox.limits import Limits
from agent.outbox.message import Kind, OutboxMessage, Submission
from agent.outbox.schema import Durability, MessageRow, Shelf, decode
from agent.outbox.stats import OutboxStats, ParkedMessage, gather
from agent.outbox.writer import Append, Opened, Read, Register, Writer, read_parked

CHECK_SECONDS = 0.25

Answer = Callable[[list[int], StorageError | None], None]


class Outbox:
    """A durable queue of messages with one view for each sink. On the loop only.

    What is promised, and what is dropped when it is full, is in `docs/reference/outbox.md`.

    Example:
        outbox = await Outbox.open(paths.outbox, node="greenhouse-1", clock=SystemClock())
        await outbox.submit(Submission(service="readgpio_py", payload=b'{"pin": 17}'))
        await outbox.close()
    """

    def __init__(self, *, node: str, clock: Clock, limits: Limits) -> None:
        self._node = node
        self._clock = clock
        self._limits = limits
        self._feeds: dict[str, Feed] = {}
        self._boots: dict[int, str] = {}
        self._closed = False
        self._writer: Writer
        self.stream = ""
        """The file's random name; a new one when a damaged file was replaced."""
        self.recovered_from: Path | None = None
        """The new name of a damaged file that this outbox replaced, at the start or while running."""

    @classmethod
    async def open(
        cls,
        path: Path | None,
        *,
        node: str,
        clock: Clock,
        durability: Durability = "crash",
        limits: Limits | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> Outbox:
        """Open the outbox's file, or make it.

        Args:
            path: the file; None keeps everything in memory (tests).
            node: the node's name, which every message carries.
            durability: `crash` (default) survives the end of any process at any moment; `power` also a power cut, at
            one
                sync of the disk for each commit.
            limits: how much is kept (default 256 MiB and 30 days).
            check_seconds: how long the check of the file may take (default 0.25 s).

        A damaged file is set aside as `<name>.damaged-<n>` and a new one started; see `recovered_from`.
        Raises StorageError when the file cannot be opened, is in use, or was written by a newer version.
        """
        outbox = cls(node=node, clock=clock, limits=limits or Limits())
        outbox._writer = Writer(
            path,
            clock=clock,
            durability=durability,
            limits=outbox._limits,
            check_seconds=check_seconds,
            committed=outbox._on_committed,
            opened=outbox._on_replaced,
        )
        outbox._adopt(await outbox._writer.start())
        return outbox

    async def submit(self, submission: Submission) -> int:
        """Store a message and return its sequence; committed when this returns, together with whoever waits too.

        Returns 0 for a hand-in that was stored already (see `Submission.producer_sequence`). Raises StorageError when
        it could not be stored: the disk is full or broken; nothing else is affected. If the caller is cancelled the
        message may be stored.
        """
        return (await self.submit_many([submission]))[0]

    async def submit_many(self, submissions: Sequence[Submission]) -> list[int]:
        """Store messages in one transaction and return their sequences; as `submit`, all of them or none."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

        def answer(sequences: list[int], error: StorageError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(sequences)
            else:
                future.set_exception(error)

        self.submit_many_nowait(submissions, answer)
        return await future

    def submit_nowait(self, submission: Submission, callback: Callable[[int, StorageError | None], None]) -> None:
        """Hand in a message; `callback(sequence, error)` is called on the loop after the commit."""
        self.submit_many_nowait(
            (submission,), lambda sequences, error: callback(sequences[0] if sequences else 0, error)
        )

    def submit_many_nowait(self, submissions: Sequence[Submission], callback: Answer) -> None:
        """Hand in messages for one transaction; `callback(sequences, error)` is called on the loop after the commit.

        The fastest way in. Messages handed in by one caller are stored in that order. Raises StorageError when closed.
        """
        self._check_open()
        self._writer.put(Append(submissions, self._clock.wall(), self._clock.monotonic(), callback))

    def feed(self, sink: str, kinds: frozenset[Kind]) -> Feed:
        """One sink's view: begins with the oldest message that the sink has not acknowledged.

        Messages of these kinds are kept for this sink from now on, also while it is down and across restarts, until
        `retain_sinks` says that it is gone. Raises ValueError when the sink has a feed already.
        """
        self._check_open()
        if sink in self._feeds:
            raise ValueError(f"The sink {sink} has a feed already; give each sink a name of its own.")
        self._writer.put(Register(sink, kinds))
        feed = Feed(
            sink, kinds, writer=self._writer, clock=self._clock, boot=self._clock.boot_id(), decode=self._decode
        )
        self._feeds[sink] = feed
        return feed

    def drop_feed(self, sink: str) -> None:
        """End a sink's feed; its messages wait for the next feed of that name."""
        feed = self._feeds.pop(sink, None)
        if feed is not None:
            feed.close()

    async def retain_sinks(self, sinks: Collection[str]) -> None:
        """Keep messages for these sinks only: what the operator has set up. What waits for others alone is let go."""
        known = await self._ask(lambda ledger: list(ledger.sinks))
        for sink in known:
            if sink not in sinks:
                self.drop_feed(sink)
                self._writer.put(Register(sink, None))

    def stats(self) -> OutboxStats:
        """How the outbox stands after its last commit."""
        return gather(
            dict(self._writer.ledger.counters),
            stream=self.stream,
            limit_bytes=self._limits.bytes,
            recovered_from=None if self.recovered_from is None else str(self.recovered_from),
        )

    async def parked(self) -> list[ParkedMessage]:
        """The messages that a far end refused for ever, oldest first; the newest thousand are kept."""
        parked: list[ParkedMessage] = await self._ask(read_parked)
        return parked

    async def flush(self) -> None:
        """Return when everything handed in, acknowledged or parked so far is committed."""
        await self._ask(lambda _: None)

    async def watch(self) -> None:
        """Wait until the outbox is closed. Raises StorageError when it cannot go on, which only a new start mends."""
        await self._writer.watch()

    async def close(self) -> None:
        """Commit what is queued, end the feeds and close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for feed in self._feeds.values():
            feed.close()
        await self._writer.stop()

    # ---- inside

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("The outbox is closed; the agent is stopping.")

    async def _ask(self, question: Callable[[Ledger], Any]) -> Any:
        self._check_open()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answer(value: Any, error: StorageError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._writer.put(Read(question, answer))
        return await future

    def _adopt(self, opened: Opened) -> None:
        self.stream = opened.stream
        self._boots = opened.boots
        if opened.recovered_from is not None:
            self.recovered_from = opened.recovered_from

    def _decode(self, shelf: Shelf, row: MessageRow) -> OutboxMessage:
        return decode(shelf, row, node=self._node, stream=self.stream, boot=self._boots[row[1]])

    def _on_committed(self, appended: dict[int, list[MessageRow]], dropped: dict[int, list[tuple[int, int]]]) -> None:
        for feed in self._feeds.values():
            feed.offer(appended, dropped)

    def _on_replaced(self, opened: Opened) -> None:
        self._adopt(opened)
        for feed in self._feeds.values():
            feed.reset(self._clock.boot_id())
