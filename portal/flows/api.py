"""Flows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from portal.access import After, Limit, OperatorReads, OperatorWrites, Search, ViewerReads
from portal.flows.views import FlowForm, FlowImpact, FlowView
from portal.views import Page

router = APIRouter(tags=["flows"])
Id = Annotated[str, Path(max_length=36)]


@router.get("/flows")
async def list_flows(work: ViewerReads, search: Search = "", limit: Limit = 100, after: After = None) -> Page[FlowView]:
    """Flows by name."""
    return await work.flows.list(search=search, limit=limit, after=after)


@router.post("/flows", status_code=201)
async def create_flow(work: OperatorWrites, form: FlowForm) -> FlowView:
    """Make a flow; the nodes that it concerns are told at once."""
    return await work.flows.create(form)


@router.post("/flows/impact")
async def impact(
    work: OperatorReads, form: FlowForm, flow: Annotated[str | None, Query(max_length=36)] = None
) -> list[FlowImpact]:
    """Which nodes saving this flow would change, without saving it; `flow` is the id of the one that it replaces."""
    return await work.flows.impact(form, flow)


@router.get("/flows/{flow_id}")
async def get_flow(work: ViewerReads, flow_id: Id) -> FlowView:
    """One flow; security values are masked."""
    return await work.flows.get(flow_id)


@router.put("/flows/{flow_id}")
async def change_flow(work: OperatorWrites, flow_id: Id, form: FlowForm) -> FlowView:
    """Replace a flow; a masked security value keeps what is stored."""
    return await work.flows.change(flow_id, form)


@router.delete("/flows/{flow_id}", status_code=204)
async def delete_flow(work: OperatorWrites, flow_id: Id) -> None:
    """Forget a flow; what it alone assigned stops."""
    await work.flows.delete(flow_id)
