"""Faults."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from portal.access import After, Limit, ViewerReads
from portal.faults.views import FaultView
from portal.views import Page

router = APIRouter(tags=["faults"])


@router.get("/faults")
async def list_faults(
    work: ViewerReads,
    node: Annotated[str, Query(max_length=36)] = "",
    code: Annotated[str, Query(max_length=50)] = "",
    limit: Limit = 100,
    after: After = None,
) -> Page[FaultView]:
    """Faults of all nodes, newest first."""
    return await work.faults.list(node_id=node, code=code, limit=limit, after=after)
