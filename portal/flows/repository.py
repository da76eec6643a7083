"""Queries of flows."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.flows.models import Flow


class FlowRepository:
    """Flows and their activities."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, flow: Flow) -> None:
        """Store a new flow."""
        self._session.add(flow)

    async def delete(self, flow: Flow) -> None:
        """Forget a flow."""
        await self._session.delete(flow)

    async def page(self, organization_id: str, *, search: str, limit: int, after: str | None) -> Sequence[Flow]:
        """Flows by name."""
        query = select(Flow).where(Flow.organization_id == organization_id)
        if search:
            query = query.where(Flow.name_key.contains(search.casefold(), autoescape=True))
        if after is not None:
            query = query.where(Flow.name_key > after)
        return (await self._session.scalars(query.order_by(Flow.name_key).limit(limit))).all()

    async def count(self, organization_id: str) -> int:
        """How many there are."""
        return (
            await self._session.scalar(
                select(func.count()).select_from(Flow).where(Flow.organization_id == organization_id)
            )
            or 0
        )

    async def get(self, organization_id: str, flow_id: str) -> Flow | None:
        """One flow."""
        return await self._session.scalar(
            select(Flow).where(Flow.organization_id == organization_id, Flow.id == flow_id)
        )

    async def by_name(self, organization_id: str, name: str) -> Flow | None:
        """One flow by name, without regard to case."""
        return await self._session.scalar(
            select(Flow).where(Flow.organization_id == organization_id, Flow.name_key == name.casefold())
        )

    async def all(self, organization_id: str) -> Sequence[Flow]:
        """Every flow, oldest first."""
        return (
            await self._session.scalars(
                select(Flow).where(Flow.organization_id == organization_id).order_by(Flow.created_at, Flow.id)
            )
        ).all()
