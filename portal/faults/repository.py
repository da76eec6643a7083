"""Queries of faults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.faults.models import Fault
from portal.ledger import add_new
from portal.nodes.models import Node


class FaultRepository:
    """Faults."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add_new(self, node_id: str, faults: Sequence[Fault]) -> list[Fault]:
        """Store those that are not stored yet; which these were."""
        return await add_new(self._session, Fault, node_id, faults)

    async def page(
        self, organization_id: str, *, node_id: str, code: str, limit: int, before: int | None
    ) -> Sequence[tuple[Fault, str]]:
        """Faults and their nodes' names, newest first."""
        query = (
            select(Fault, Node.name)
            .join(Node, Node.id == Fault.node_id)
            .where(Fault.organization_id == organization_id)
        )
        if node_id:
            query = query.where(Fault.node_id == node_id)
        if code:
            query = query.where(Fault.code == code)
        if before is not None:
            query = query.where(Fault.id < before)
        rows = await self._session.execute(query.order_by(Fault.id.desc()).limit(limit))
        return [(row[0], row[1]) for row in rows]

    async def counts(self, node_ids: Sequence[str], since: datetime) -> dict[str, int]:
        """How many faults these nodes reported since a moment."""
        rows = await self._session.execute(
            select(Fault.node_id, func.count())
            .where(Fault.node_id.in_(node_ids), Fault.received_at >= since)
            .group_by(Fault.node_id)
        )
        return {row[0]: row[1] for row in rows}

    async def totals(self, organization_id: str, since: datetime) -> tuple[int, int]:
        """How many nodes reported faults since a moment, and how many faults these were."""
        row = (
            await self._session.execute(
                select(func.count(func.distinct(Fault.node_id)), func.count()).where(
                    Fault.organization_id == organization_id, Fault.received_at >= since
                )
            )
        ).one()
        return row[0], row[1]
