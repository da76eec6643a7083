"""Queries of faults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from portal.faults.models import Fault
from portal.nodes.models import Node


class FaultRepository:
    """Faults."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add_new(self, node_id: str, faults: Sequence[Fault]) -> list[Fault]:
        """Store those that are not stored yet; which these were.

        One connection of a node is served at a time, so that nobody stores the same faults in between; should it
        happen nevertheless, the unique constraint refuses the transaction and the node reports them again.
        """
        keys = [(fault.stream, fault.service, fault.sequence) for fault in faults]
        rows = await self._session.execute(
            select(Fault.stream, Fault.service, Fault.sequence).where(
                Fault.node_id == node_id, tuple_(Fault.stream, Fault.service, Fault.sequence).in_(keys)
            )
        )
        seen = {(row[0], row[1], row[2]) for row in rows}
        new: list[Fault] = []
        for key, fault in zip(keys, faults, strict=True):
            if key not in seen:
                seen.add(key)
                new.append(fault)
        self._session.add_all(new)
        await self._session.flush()
        return new

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
