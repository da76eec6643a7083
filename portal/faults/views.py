"""What pages and API see of faults."""

from __future__ import annotations

from datetime import datetime

from portal.views import View


class FaultView(View):
    """Something that a service or the agent reported with ThrowError."""

    id: int
    node_id: str
    node: str
    service: str
    code: str
    text: str
    description: str
    at: datetime
    """When it happened, as the node believes."""
    received_at: datetime
