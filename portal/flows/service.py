"""What can be done with flows."""

from __future__ import annotations

import builtins

from portal.flows.views import FlowForm, FlowImpact, FlowView
from portal.views import Page
from portal.work import Work


class FlowService:
    """The organisation's flows."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def list(self, *, search: str = "", limit: int = 100, after: str | None = None) -> Page[FlowView]:
        """Flows by name."""
        raise NotImplementedError

    async def get(self, flow_id: str) -> FlowView:
        """One flow. Raises NotFoundError."""
        raise NotImplementedError

    async def create(self, form: FlowForm) -> FlowView:
        """Make a flow. Raises ConflictError (`flow_name_taken`), InvalidError (`service_not_found`, `property_unknown`, …)."""
        raise NotImplementedError

    async def change(self, flow_id: str, form: FlowForm) -> FlowView:
        """Replace a flow; masked security values keep what is stored."""
        raise NotImplementedError

    async def set_enabled(self, flow_id: str, enabled: bool) -> FlowView:
        """Switch a flow on or off."""
        raise NotImplementedError

    async def delete(self, flow_id: str) -> None:
        """Forget a flow."""
        raise NotImplementedError

    async def impact(self, form: FlowForm, flow_id: str | None = None) -> builtins.list[FlowImpact]:
        """Which nodes saving this form would change, without saving it."""
        raise NotImplementedError
