"""Queries of timelines, faults and tracking records as a whole: what of them is too old, or too much."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from portal.faults.models import Fault
from portal.nodes.models import NodeEvent
from portal.tracking.models import TrackingRecord

HistoryTable = type[NodeEvent] | type[Fault] | type[TrackingRecord]
HISTORIES: Final[tuple[HistoryTable, ...]] = (NodeEvent, Fault, TrackingRecord)


class HistoryRepository:
    """What grows with time."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def nodes_with_news(self, table: HistoryTable, since: datetime | None) -> Sequence[str]:
        """The nodes of which something was stored since a moment; None: ever."""
        query = select(table.node_id).distinct()
        if since is not None:
            query = query.where(_stored_at(table) >= since)
        return (await self._session.scalars(query)).all()

    async def newest_beyond(self, table: HistoryTable, node_id: str, most: int) -> int | None:
        """The newest entry of a node behind its `most` newest ones; None when there are no more than that."""
        query = select(table.id).where(table.node_id == node_id).order_by(table.id.desc()).offset(most).limit(1)
        return await self._session.scalar(query)

    async def delete_before(self, table: HistoryTable, moment: datetime, *, limit: int) -> int:
        """Forget at most `limit` entries that were stored before a moment, the oldest ones; how many these were."""
        at = _stored_at(table)
        ids = (await self._session.scalars(select(table.id).where(at < moment).order_by(at).limit(limit))).all()
        return await self._delete(table, ids)

    async def delete_up_to(self, table: HistoryTable, node_id: str, newest: int, *, limit: int) -> int:
        """Forget at most `limit` entries of a node up to `newest`, the oldest ones; how many these were."""
        query = select(table.id).where(table.node_id == node_id, table.id <= newest).order_by(table.id).limit(limit)
        return await self._delete(table, (await self._session.scalars(query)).all())

    async def _delete(self, table: HistoryTable, ids: Sequence[int]) -> int:
        if ids:
            await self._session.execute(delete(table).where(table.id.in_(ids)))
        return len(ids)


def _stored_at(table: HistoryTable) -> InstrumentedAttribute[datetime]:
    return table.at if issubclass(table, NodeEvent) else table.received_at
