"""Queries of organisations."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.organizations.models import Organization


class OrganizationRepository:
    """Organisations."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, organization_id: str) -> Organization | None:
        """One by id."""
        return await self._session.get(Organization, organization_id)

    async def first(self) -> Organization | None:
        """The oldest one: the organisation of an installation that has one."""
        return await self._session.scalar(select(Organization).order_by(Organization.created_at).limit(1))

    def add(self, organization: Organization) -> None:
        """Store a new one."""
        self._session.add(organization)
