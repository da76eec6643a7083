"""What can be done with faults."""

from __future__ import annotations

from portal.faults.repository import FaultRepository
from portal.faults.views import FaultView
from portal.paging import parse_cursor
from portal.views import Page
from portal.work import Work


class FaultService:
    """Faults of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._faults = FaultRepository(work.session)

    async def list(
        self, *, node_id: str = "", code: str = "", limit: int = 100, after: str | None = None
    ) -> Page[FaultView]:
        """Faults, newest first."""
        rows = await self._faults.page(
            self._work.organization_id, node_id=node_id, code=code, limit=limit + 1, before=parse_cursor(after)
        )
        shown = rows[:limit]
        return Page(
            items=[
                FaultView(
                    id=fault.id,
                    node_id=fault.node_id,
                    node=node,
                    service=fault.service,
                    code=fault.code,
                    text=fault.text,
                    description=fault.description,
                    at=fault.at,
                    received_at=fault.received_at,
                )
                for fault, node in shown
            ],
            next=str(shown[-1][0].id) if len(rows) > limit else None,
        )
