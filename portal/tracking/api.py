"""Tracking records."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from portal.access import After, Limit, ViewerReads
from portal.tracking.views import TrackingView
from portal.views import Page

router = APIRouter(tags=["tracking"])


@router.get("/tracking")
async def list_tracking_records(
    work: ViewerReads,
    node: Annotated[str, Query(max_length=36)] = "",
    service: Annotated[str, Query(max_length=100)] = "",
    limit: Limit = 100,
    after: After = None,
) -> Page[TrackingView]:
    """What services told with Track, of all nodes or one, of all services or one, newest first."""
    return await work.tracking.list(node_id=node, service=service, limit=limit, after=after)
