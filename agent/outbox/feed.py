"""One sink's view of the outbox."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from agent.clock import Clock
from agent.errors import StorageError
from agent.outbox.ledger import shelf_of_id
from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.schema import ID_STEP, SHELVES, MessageRow, Shelf
from agent.outbox.writer import Acknowledge, Load, Park, Sweep, Writer

READY_MESSAGES: Final = 2000
READY_BYTES: Final = 2 << 20
"""What a feed holds ready of one kind and lane, beside what its sink has taken; the rest stays on the disk."""

PREFETCH_MESSAGES: Final = 250

Decode = Callable[[Shelf, MessageRow], OutboxMessage]


class _Lane:
    """The messages of one shelf that are in memory for this feed."""

    __slots__ = ("caught_up", "loading", "position", "ready", "ready_bytes", "shelf")

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.ready: deque[OutboxMessage] = deque()
        self.ready_bytes = 0
        self.position = 0
        """The last row that came into memory."""
        self.caught_up = False
        """Whether every row of the shelf has come into memory, so that new ones need no reading."""
        self.loading = False

    def has_room(self) -> bool:
        return len(self.ready) < READY_MESSAGES and self.ready_bytes < READY_BYTES

    def push(self, message: OutboxMessage) -> None:
        self.ready.append(message)
        self.ready_bytes += len(message.payload)
        self.position = message.id // ID_STEP

    def pop(self) -> OutboxMessage:
        message = self.ready.popleft()
        self.ready_bytes -= len(message.payload)
        return message

    def replace(self, messages: list[OutboxMessage]) -> None:
        self.ready = deque(messages)
        self.ready_bytes = sum(len(message.payload) for message in messages)


class Feed:
    """What one sink has to send: taken, then acknowledged, given back or parked. On the loop only; one task takes.

    Within a service, kind and lane, messages come in the order of their submission. When both lanes wait, `live` comes
    first; faults come before everything else in their lane. Only a window is held in memory, however long the backlog.

    Example:
        messages = await feed.take(50)
        ...
        await feed.acknowledge([message.id for message in messages])
    """

    def __init__(
        self, sink: str, kinds: frozenset[Kind], *, writer: Writer, clock: Clock, boot: str, decode: Decode
    ) -> None:
        self.sink = sink
        self.kinds = kinds
        self._writer = writer
        self._clock = clock
        self._boot = boot
        self._decode = decode
        self._lanes = {shelf.index: _Lane(shelf) for shelf in SHELVES if shelf.kind in kinds}
        self._taken: dict[int, OutboxMessage] = {}
        self._something = asyncio.Event()
        self._closed = False

    async def take(self, limit: int) -> list[OutboxMessage]:
        """Wait until there is something and take up to `limit` messages, oldest first.

        Each message is handed out once, until it is given back. Cancelling loses nothing. Raises StorageError when the
        outbox is closed.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1.")
        while True:
            if self._closed:
                raise StorageError("The outbox is closed; open it again to go on sending.")
            self._something.clear()
            batch = self._collect(limit)
            if batch:
                return batch
            await self._something.wait()

    def waiting(self) -> bool:
        """Whether `take` would return at once."""
        return any(lane.ready for lane in self._lanes.values())

    async def acknowledge(self, ids: Sequence[int]) -> None:
        """Tell that the far end has these messages; unknown ids are ignored.

        They are counted and deleted with the outbox's next commit: a crash before that makes duplicates at the far
        end, and nothing else.
        """
        messages = [self._taken.pop(message_id) for message_id in ids if message_id in self._taken]
        if messages:
            self._writer.put(Acknowledge(self.sink, messages))

    def give_back(self, ids: Sequence[int]) -> None:
        """Return what was taken and not acknowledged, because the connection is gone.

        `take` hands it out again, in its old place.
        """
        returned: dict[int, list[OutboxMessage]] = {}
        for message_id in ids:
            if message_id in self._taken:
                returned.setdefault(shelf_of_id(message_id).index, []).append(self._taken.pop(message_id))
        for index, messages in returned.items():
            lane = self._lanes[index]
            lane.replace(sorted([*messages, *lane.ready], key=lambda message: message.id))
        if returned:
            self._something.set()

    async def park(self, message_id: int, reason: str) -> None:
        """Put aside a message that the far end refuses for ever: kept and shown with the reason, never sent again."""
        message = self._taken.pop(message_id, None)
        if message is not None:
            self._writer.put(Park(self.sink, message, reason, self._clock.wall()))

    # ---- called by the outbox

    def offer(self, appended: dict[int, list[MessageRow]], dropped: dict[int, list[tuple[int, int]]]) -> None:
        """Take in new rows, and let go of those that were dropped."""
        for index, rows in appended.items():
            lane = self._lanes.get(index)
            if lane is None:
                continue
            if lane.caught_up:
                self._take_in(lane, rows)
            elif not lane.loading:
                # A page could not be read the last time.
                self._something.set()
        for index, ranges in dropped.items():
            lane = self._lanes.get(index)
            if lane is not None and lane.ready and ranges:
                lane.replace([message for message in lane.ready if not _within(message.id // ID_STEP, ranges)])

    def reset(self, boot: str) -> None:
        """Begin anew: the file was replaced, so that ids and positions mean nothing any more."""
        self._boot = boot
        self._taken.clear()
        self._lanes = {index: _Lane(lane.shelf) for index, lane in self._lanes.items()}
        self._something.set()

    def close(self) -> None:
        """End every `take`."""
        self._closed = True
        self._something.set()

    # ---- inside

    def _take_in(self, lane: _Lane, rows: list[MessageRow]) -> None:
        for row in rows:
            if not lane.has_room():
                # The rest stays on the disk until there is room.
                lane.caught_up = False
                break
            lane.push(self._decode(lane.shelf, row))
        self._something.set()

    def _collect(self, limit: int) -> list[OutboxMessage]:
        batch: list[OutboxMessage] = []
        for lane in self._lanes.values():
            while lane.ready and len(batch) < limit:
                message = lane.pop()
                if self._has_expired(message):
                    self._writer.put(Sweep())
                else:
                    batch.append(message)
            if not lane.caught_up and len(lane.ready) < PREFETCH_MESSAGES:
                self._load(lane)
                if not lane.ready and not batch:
                    # What this lane has on the disk goes before the next lane's.
                    return []
            if len(batch) == limit:
                break
        self._taken.update((message.id, message) for message in batch)
        return batch

    def _has_expired(self, message: OutboxMessage) -> bool:
        """Whether to leave a message to the writer's sweep, which drops and counts it."""
        if message.expires_wall is None:
            return False
        since = message.created_monotonic if message.boot == self._boot else 0.0
        return self._clock.monotonic() - since > message.expires_wall - message.created_wall

    def _load(self, lane: _Lane) -> None:
        if lane.loading:
            return
        lane.loading = True

        def loaded(shelf: Shelf, rows: list[MessageRow], is_end: bool) -> None:
            if self._lanes.get(shelf.index) is not lane:
                return
            lane.loading = False
            lane.caught_up = is_end
            for row in rows:
                lane.push(self._decode(shelf, row))
            if rows or is_end:
                self._something.set()

        self._writer.put(Load(self.sink, lane.shelf, lane.position, loaded))


def _within(number: int, ranges: list[tuple[int, int]]) -> bool:
    return any(first <= number <= last for first, last in ranges)
