"""What pages and API see of tracking records."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from portal.views import View


class TrackingView(View):
    """What a service told with Track."""

    id: int
    node_id: str
    node: str
    service: str
    sequence: int
    """Counts the service's records of one stream from 1 without gaps, in the order in which it told them."""
    stream: str
    """The node's outbox; a new name where a damaged one was replaced, and the count begins anew."""
    record: dict[str, Any]
    at: datetime
    """When it was told, as the node believes."""
    received_at: datetime
