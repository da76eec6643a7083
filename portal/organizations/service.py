"""What can be done with an organisation."""

from __future__ import annotations

from portal.organizations.views import OrganizationChange, OrganizationView
from portal.work import Work


class OrganizationService:
    """The caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def get(self) -> OrganizationView:
        """The organisation."""
        raise NotImplementedError

    async def change(self, change: OrganizationChange) -> OrganizationView:
        """Change its settings."""
        raise NotImplementedError
