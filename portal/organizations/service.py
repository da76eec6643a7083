"""What can be done with an organisation."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portal.bus import catalog_topic
from portal.errors import NotFoundError
from portal.organizations.models import Organization
from portal.organizations.repository import OrganizationRepository
from portal.organizations.views import OrganizationChange, OrganizationView
from portal.work import Work

if TYPE_CHECKING:
    from portal.portal import Portal

FIRST_NAME = "My organisation"


class OrganizationService:
    """The caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._organizations = OrganizationRepository(work.session)

    async def get(self) -> OrganizationView:
        """The organisation."""
        return _view(await self._get(self._work.organization_id))

    async def change(self, change: OrganizationChange) -> OrganizationView:
        """Change its settings; nodes hear of a new heartbeat at once, original ones when they next sign in."""
        self._work.caller.require("owner")
        organization = await self._get(self._work.organization_id)
        for key, value in change.model_dump(exclude_none=True).items():
            setattr(organization, key, value)
        portal = self._work.portal

        def tell() -> None:
            portal.hub.refresh_organization(organization.id)
            portal.bus.publish(catalog_topic(organization.id), {"change": "organization", "id": organization.id})

        self._work.after_commit(tell)
        return _view(organization)

    async def rename(self, organization_id: str, name: str) -> None:
        """Give the organisation its name; part of the set-up, when there is no caller yet."""
        (await self._get(organization_id)).name = name

    async def _get(self, organization_id: str) -> Organization:
        organization = await self._organizations.get(organization_id)
        if organization is None:
            raise NotFoundError("Your organisation does not exist any more.", code="organization_not_found")
        return organization


async def ensure_organization(portal: Portal) -> str:
    """Make the first organisation and its signing key when there is none; its id.

    Raises ConfigError when the key file of the data folder is not the one that belongs to the database.
    """
    async with portal.database.writing() as session:
        organizations = OrganizationRepository(session)
        organization = await organizations.first()
        if organization is None:
            key = Ed25519PrivateKey.generate()
            organization = Organization(
                id=str(uuid.uuid4()),
                name=FIRST_NAME,
                created_at=portal.now(),
                signing_key=portal.vault.encrypt(key.private_bytes_raw()),
                public_key=key.public_key().public_bytes_raw(),
                allow_original_agents=False,
                heartbeat_seconds=30,
                missed_heartbeat_limit=3,
            )
            organizations.add(organization)
        else:
            portal.vault.decrypt(organization.signing_key)
        return organization.id


def _view(organization: Organization) -> OrganizationView:
    return OrganizationView(
        id=organization.id,
        name=organization.name,
        created_at=organization.created_at,
        public_key=base64.b64encode(organization.public_key).decode(),
        allow_original_agents=organization.allow_original_agents,
        heartbeat_seconds=organization.heartbeat_seconds,
        missed_heartbeat_limit=organization.missed_heartbeat_limit,
    )
