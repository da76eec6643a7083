"""Queries of people."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from portal.organizations.models import Organization
from portal.people.models import Person, PersonSession, SetupToken


class PeopleRepository:
    """People, sessions and set-up tokens."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def has_owner(self, organization_id: str) -> bool:
        """Whether somebody may administer the organisation."""
        query = select(exists().where(Person.organization_id == organization_id, Person.role == "owner"))
        return bool(await self._session.scalar(query))

    async def by_name(self, organization_id: str, name_key: str) -> Person | None:
        """A person by name."""
        return await self._session.scalar(
            select(Person).where(Person.organization_id == organization_id, Person.name_key == name_key)
        )

    async def by_id(self, organization_id: str, person_id: str) -> Person | None:
        """A person by id."""
        return await self._session.scalar(
            select(Person).where(Person.organization_id == organization_id, Person.id == person_id)
        )

    async def session_and_person(self, token_hash: str) -> tuple[PersonSession, Person] | None:
        """A session and who holds it. The hash is the credential, so that no organisation is asked for."""
        row = (
            await self._session.execute(
                select(PersonSession, Person)
                .join(Person, Person.id == PersonSession.person_id)
                .where(PersonSession.token_hash == token_hash)
            )
        ).first()
        return None if row is None else (row[0], row[1])

    async def organization_name(self, organization_id: str) -> str:
        """The organisation's name."""
        return await self._session.scalar(select(Organization.name).where(Organization.id == organization_id)) or ""

    def add(self, row: Person | PersonSession | SetupToken) -> None:
        """Store a new row."""
        self._session.add(row)

    async def touch_session(self, token_hash: str, seen_at: datetime) -> None:
        """Note that a session is in use."""
        await self._session.execute(
            update(PersonSession).where(PersonSession.token_hash == token_hash).values(seen_at=seen_at)
        )

    async def delete_session(self, token_hash: str) -> None:
        """End a session."""
        await self._session.execute(delete(PersonSession).where(PersonSession.token_hash == token_hash))

    async def delete_sessions_before(self, seen: datetime, *, opened: datetime) -> None:
        """Forget sessions that were last used before `seen`, or opened before `opened`."""
        await self._session.execute(
            delete(PersonSession).where((PersonSession.seen_at < seen) | (PersonSession.created_at < opened))
        )

    async def setup_token(self, token_hash: str) -> SetupToken | None:
        """A set-up token by its hash; nobody else gets it until the commit."""
        return await self._session.get(SetupToken, token_hash, with_for_update=True)

    async def delete_setup_tokens(self, organization_id: str) -> None:
        """Make every set-up link of the organisation invalid."""
        await self._session.execute(delete(SetupToken).where(SetupToken.organization_id == organization_id))
