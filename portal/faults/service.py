"""What can be done with faults."""

from __future__ import annotations

from portal.faults.views import FaultView
from portal.views import Page
from portal.work import Work


class FaultService:
    """Faults of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def list(
        self, *, node_id: str = "", code: str = "", limit: int = 100, after: str | None = None
    ) -> Page[FaultView]:
        """Faults, newest first."""
        raise NotImplementedError
