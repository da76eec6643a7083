"""What can be done with tracking records."""

from __future__ import annotations

from portal.paging import parse_cursor
from portal.tracking.repository import TrackingRepository
from portal.tracking.views import TrackingView
from portal.views import Page
from portal.work import Work


class TrackingService:
    """Tracking records of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tracking = TrackingRepository(work.session)

    async def list(
        self, *, node_id: str = "", service: str = "", limit: int = 100, after: str | None = None
    ) -> Page[TrackingView]:
        """Tracking records, newest first."""
        rows = await self._tracking.page(
            self._work.organization_id, node_id=node_id, service=service, limit=limit + 1, before=parse_cursor(after)
        )
        shown = rows[:limit]
        return Page(
            items=[
                TrackingView(
                    id=row.id,
                    node_id=row.node_id,
                    node=node,
                    service=row.service,
                    sequence=row.sequence,
                    stream=row.stream,
                    record=row.record,
                    at=row.at,
                    received_at=row.received_at,
                )
                for row, node in shown
            ],
            next=str(shown[-1][0].id) if len(rows) > limit else None,
        )
