"""Queries of services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.flows.models import Flow, FlowActivity
from portal.services.models import Service, ServiceVersion


class VersionRow(NamedTuple):
    """A version without its text."""

    service_id: str
    file: str
    major: int
    minor: int
    sha256: str
    requirements: list[str]


class ServiceRepository:
    """Services and their versions."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: Service | ServiceVersion) -> None:
        """Store a new row."""
        self._session.add(row)

    async def delete(self, service: Service) -> None:
        """Forget a service and its versions."""
        await self._session.delete(service)

    async def page(self, organization_id: str, *, search: str, limit: int, after: str | None) -> Sequence[Service]:
        """Services by id."""
        query = select(Service).where(Service.organization_id == organization_id)
        if search:
            text = search.casefold()
            query = query.where(
                or_(
                    Service.id.contains(text, autoescape=True),
                    func.lower(Service.name).contains(text, autoescape=True),
                    func.lower(Service.description).contains(text, autoescape=True),
                )
            )
        if after is not None:
            query = query.where(Service.id > after)
        return (await self._session.scalars(query.order_by(Service.id).limit(limit))).all()

    async def count(self, organization_id: str) -> int:
        """How many there are."""
        return (
            await self._session.scalar(
                select(func.count()).select_from(Service).where(Service.organization_id == organization_id)
            )
            or 0
        )

    async def get(self, organization_id: str, service_id: str) -> Service | None:
        """One service."""
        return await self._session.get(Service, (organization_id, service_id))

    async def all(self, organization_id: str) -> Sequence[Service]:
        """Every service."""
        return (await self._session.scalars(select(Service).where(Service.organization_id == organization_id))).all()

    async def ids(self, organization_id: str) -> set[str]:
        """The ids of every service."""
        return set(await self._session.scalars(select(Service.id).where(Service.organization_id == organization_id)))

    async def versions(self, organization_id: str, service_id: str) -> Sequence[ServiceVersion]:
        """A service's versions, newest first."""
        return (
            await self._session.scalars(
                select(ServiceVersion)
                .where(ServiceVersion.organization_id == organization_id, ServiceVersion.service_id == service_id)
                .order_by(ServiceVersion.major.desc(), ServiceVersion.minor.desc())
            )
        ).all()

    async def version_rows(self, organization_id: str) -> Sequence[VersionRow]:
        """Every version of every service without its text, oldest first."""
        rows = await self._session.execute(
            select(
                ServiceVersion.service_id,
                Service.file,
                ServiceVersion.major,
                ServiceVersion.minor,
                ServiceVersion.sha256,
                ServiceVersion.requirements,
            )
            .join(
                Service,
                (Service.organization_id == ServiceVersion.organization_id) & (Service.id == ServiceVersion.service_id),
            )
            .where(ServiceVersion.organization_id == organization_id)
            .order_by(ServiceVersion.major, ServiceVersion.minor)
        )
        return [VersionRow(*row) for row in rows]

    async def latest_and_counts(self, organization_id: str, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """The newest version and the number of versions of services."""
        rows = await self._session.execute(
            select(ServiceVersion.service_id, ServiceVersion.major, ServiceVersion.minor)
            .where(ServiceVersion.organization_id == organization_id, ServiceVersion.service_id.in_(ids))
            .order_by(ServiceVersion.major, ServiceVersion.minor)
        )
        found: dict[str, tuple[str, int]] = {}
        for service_id, major, minor in rows:
            found[service_id] = (f"{major}.{minor}", found.get(service_id, ("", 0))[1] + 1)
        return found

    async def latest(self, organization_id: str, service_id: str) -> ServiceVersion | None:
        """The newest version."""
        return await self._session.scalar(
            select(ServiceVersion)
            .where(ServiceVersion.organization_id == organization_id, ServiceVersion.service_id == service_id)
            .order_by(ServiceVersion.major.desc(), ServiceVersion.minor.desc())
            .limit(1)
        )

    async def version(self, organization_id: str, service_id: str, version: str) -> ServiceVersion | None:
        """One version."""
        major, _, minor = version.partition(".")
        if not (_number(major) and _number(minor)):
            return None
        return await self._session.get(ServiceVersion, (organization_id, service_id, int(major), int(minor)))

    async def usage(self, organization_id: str, service_id: str) -> Sequence[tuple[Flow, FlowActivity]]:
        """The flows that use a service."""
        rows = await self._session.execute(
            select(Flow, FlowActivity)
            .join(FlowActivity, FlowActivity.flow_id == Flow.id)
            .where(FlowActivity.organization_id == organization_id, FlowActivity.service_id == service_id)
            .order_by(Flow.name_key, FlowActivity.position)
        )
        return [(row[0], row[1]) for row in rows]

    async def usage_counts(self, organization_id: str, ids: Sequence[str]) -> dict[str, int]:
        """How many flows use services."""
        rows = await self._session.execute(
            select(FlowActivity.service_id, func.count(func.distinct(FlowActivity.flow_id)))
            .where(FlowActivity.organization_id == organization_id, FlowActivity.service_id.in_(ids))
            .group_by(FlowActivity.service_id)
        )
        return {row[0]: row[1] for row in rows}


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6
