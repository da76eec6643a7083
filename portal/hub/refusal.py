"""Nodes that are refused."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from agent.hub.protocol import ERROR_INVALID_REQUEST, ERROR_ORGANIZATION_NOT_FOUND
from portal.hub.connection import NodeConnection
from portal.organizations.models import Organization
from portal.organizations.repository import OrganizationRepository


class RefusalError(Exception):
    """A node is refused with `errorMessage`; the transaction changes nothing."""

    def __init__(self, text: str, code: int, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.arguments: list[str | int] = [text, code, reason] if reason else [text, code]


def node_of(connection: NodeConnection) -> str:
    """The id of the node that is signed in. Raises RefusalError when none is."""
    if connection.node_id is None:
        raise RefusalError("Sign in first.", ERROR_INVALID_REQUEST)
    return connection.node_id


async def organization_of(session: AsyncSession, organization_id: str) -> Organization:
    """The organisation that a node names. Raises RefusalError when there is none."""
    organization = await OrganizationRepository(session).get(organization_id)
    if organization is None:
        raise RefusalError("There is no such organisation on this portal.", ERROR_ORGANIZATION_NOT_FOUND)
    return organization
