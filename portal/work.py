"""One request's work: one transaction, one caller, and the services that both pages and API call.

    async with portal.reading(caller) as work:
        page = await work.nodes.list(search="pump")
    async with portal.writing(caller) as work:
        await work.flows.create(form)

What must only happen when the transaction is stored (events, pushes to nodes) is handed to `after_commit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncSession

from portal.errors import NotAllowedError, NotSignedInError
from portal.views import Role

if TYPE_CHECKING:
    from portal.console.service import ConsoleService
    from portal.faults.service import FaultService
    from portal.flows.service import FlowService
    from portal.nodes.service import NodeService
    from portal.organizations.service import OrganizationService
    from portal.people.service import PeopleService
    from portal.portal import Portal
    from portal.services.service import ScriptService
    from portal.tracking.service import TrackingService

_RANK: dict[Role, int] = {"viewer": 0, "operator": 1, "owner": 2}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Everything that is read or changed belongs to the caller's organisation."""

    organization_id: str
    name: str
    role: Role
    person_id: str | None = None

    def require(self, role: Role) -> None:
        """Raise NotAllowedError unless the caller has `role` or a higher one (viewer < operator < owner)."""
        if _RANK[self.role] < _RANK[role]:
            raise NotAllowedError(f"This needs the role {role}; {self.name} has {self.role}. Ask an owner.")


class Work:
    """The services of one transaction."""

    def __init__(self, portal: Portal, session: AsyncSession, caller: Caller | None) -> None:
        self.portal = portal
        self.session = session
        self._caller = caller
        self._after_commit: list[Callable[[], None]] = []

    @property
    def caller(self) -> Caller:
        """Who asks. Raises NotSignedInError when nobody is signed in."""
        if self._caller is None:
            raise NotSignedInError("You are not signed in, or your session has ended; sign in again.")
        return self._caller

    @property
    def organization_id(self) -> str:
        """The caller's organisation."""
        return self.caller.organization_id

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once the transaction is stored; never when it is not."""
        self._after_commit.append(action)

    def committed(self) -> None:
        """Carry out what waited for the commit."""
        actions, self._after_commit = self._after_commit, []
        for action in actions:
            action()

    @cached_property
    def people(self) -> PeopleService:
        """Set-up, sign-in, sessions."""
        from portal.people.service import PeopleService

        return PeopleService(self)

    @cached_property
    def organizations(self) -> OrganizationService:
        """The caller's organisation."""
        from portal.organizations.service import OrganizationService

        return OrganizationService(self)

    @cached_property
    def nodes(self) -> NodeService:
        """Nodes, codes, announcements."""
        from portal.nodes.service import NodeService

        return NodeService(self)

    @cached_property
    def services(self) -> ScriptService:
        """Services, versions, library."""
        from portal.services.service import ScriptService

        return ScriptService(self)

    @cached_property
    def flows(self) -> FlowService:
        """Flows."""
        from portal.flows.service import FlowService

        return FlowService(self)

    @cached_property
    def console(self) -> ConsoleService:
        """Console lines and switches."""
        from portal.console.service import ConsoleService

        return ConsoleService(self)

    @cached_property
    def faults(self) -> FaultService:
        """Faults."""
        from portal.faults.service import FaultService

        return FaultService(self)

    @cached_property
    def tracking(self) -> TrackingService:
        """Tracking records."""
        from portal.tracking.service import TrackingService

        return TrackingService(self)
