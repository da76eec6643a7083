"""Keeping timelines, faults and tracking records within bounds."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from portal.database import Database
from portal.history.repository import HISTORIES, HistoryRepository, HistoryTable

log = logging.getLogger(__name__)

MOST_A_NODE = 10_000
OVERLAP = timedelta(minutes=5)
"""An entry gets its time before its transaction gets its turn: so late it may be seen."""
BATCH = 500
"""So many are deleted in one transaction: who else wants to write waits for no more than that."""


class HistoryService:
    """Forgets what is too old, and of what is too much the oldest. On the loop only.

    Args:
        keep: how long an entry is kept after it was stored.
        most: how many entries of each kind are kept of a node (default 10,000).
        batch: how many are deleted in one transaction (default 500).
    """

    def __init__(self, database: Database, *, keep: timedelta, most: int = MOST_A_NODE, batch: int = BATCH) -> None:
        self._database = database
        self._keep = keep
        self._most = most
        self._batch = batch
        self._counted_at: datetime | None = None

    async def trim(self, now: datetime) -> int:
        """Bring everything within bounds; how many entries were forgotten."""
        forgotten = 0
        for table in HISTORIES:
            forgotten += await self._trim_age(table, now - self._keep)
            forgotten += await self._trim_number(table)
        self._counted_at = now
        if forgotten:
            log.info("Forgot %d entries of nodes' histories.", forgotten, extra={"action": "history_trimmed"})
        return forgotten

    async def _trim_age(self, table: HistoryTable, moment: datetime) -> int:
        async def some(histories: HistoryRepository) -> int:
            return await histories.delete_before(table, moment, limit=self._batch)

        return await self._in_batches(some)

    async def _trim_number(self, table: HistoryTable) -> int:
        # Counting holds nobody up, and only where something has come since the last time.
        since = self._counted_at - OVERLAP if self._counted_at is not None else None
        async with self._database.reading() as session:
            histories = HistoryRepository(session)
            beyond = {
                node_id: newest
                for node_id in await histories.nodes_with_news(table, since)
                if (newest := await histories.newest_beyond(table, node_id, self._most)) is not None
            }
        forgotten = 0
        for node_id, newest in beyond.items():

            async def some(histories: HistoryRepository, node_id: str = node_id, newest: int = newest) -> int:
                return await histories.delete_up_to(table, node_id, newest, limit=self._batch)

            forgotten += await self._in_batches(some)
        return forgotten

    async def _in_batches(self, some: Callable[[HistoryRepository], Awaitable[int]]) -> int:
        """Call `some` in a transaction of its own each time, until it finds less than a batch."""
        forgotten = 0
        while True:
            async with self._database.writing() as session:
                deleted = await some(HistoryRepository(session))
            forgotten += deleted
            if deleted < self._batch:
                return forgotten
