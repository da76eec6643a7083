"""The organisation's settings."""

from __future__ import annotations

from fastapi import APIRouter

from portal.access import OwnerWrites, ViewerReads
from portal.organizations.views import OrganizationChange, OrganizationView

router = APIRouter(tags=["organization"])


@router.get("/organization")
async def get_organization(work: ViewerReads) -> OrganizationView:
    """The organisation of the caller."""
    return await work.organizations.get()


@router.patch("/organization")
async def change_organization(work: OwnerWrites, change: OrganizationChange) -> OrganizationView:
    """Change its name, its nodes' heartbeat, or whether agents of the original product are taken."""
    return await work.organizations.change(change)
