"""Queries of tracking records."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.ledger import add_new
from portal.nodes.models import Node
from portal.tracking.models import TrackingRecord


class TrackingRepository:
    """Tracking records."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add_new(self, node_id: str, records: Sequence[TrackingRecord]) -> list[TrackingRecord]:
        """Store those that are not stored yet; which these were."""
        return await add_new(self._session, TrackingRecord, node_id, records)

    async def page(
        self, organization_id: str, *, node_id: str, service: str, limit: int, before: int | None
    ) -> Sequence[tuple[TrackingRecord, str]]:
        """Records and their nodes' names, newest first."""
        query = (
            select(TrackingRecord, Node.name)
            .join(Node, Node.id == TrackingRecord.node_id)
            .where(TrackingRecord.organization_id == organization_id)
        )
        if node_id:
            query = query.where(TrackingRecord.node_id == node_id)
        if service:
            query = query.where(TrackingRecord.service == service)
        if before is not None:
            query = query.where(TrackingRecord.id < before)
        rows = await self._session.execute(query.order_by(TrackingRecord.id.desc()).limit(limit))
        return [(row[0], row[1]) for row in rows]
