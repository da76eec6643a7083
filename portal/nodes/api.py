"""Nodes, verification codes, announcements."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from portal.access import After, Limit, OperatorCalls, OperatorWrites, OwnerWrites, Public, Search, ViewerReads
from portal.faults.views import FaultView
from portal.hub.views import CommandForm, CommandResult
from portal.nodes.views import (
    AnnouncementView,
    ClaimForm,
    IotHubForm,
    NodeChange,
    NodeCounts,
    NodeDetail,
    NodeEventView,
    NodeView,
    TagView,
    VerificationCodeForm,
    VerificationCodeView,
)
from portal.views import Page

router = APIRouter(tags=["nodes"])
Id = Annotated[str, Path(max_length=36)]


@router.post("/verification-codes", status_code=201)
async def create_verification_code(work: OperatorWrites, form: VerificationCodeForm) -> VerificationCodeView:
    """Make a code with which one machine becomes a node, and the command to paste there."""
    return await work.nodes.create_verification_code(form)


@router.get("/nodes")
async def list_nodes(
    work: ViewerReads,
    search: Search = "",
    tag: Annotated[str, Query(max_length=65)] = "",
    status: Literal["", "online", "offline", "disabled"] = "",
    limit: Limit = 100,
    after: After = None,
) -> Page[NodeView]:
    """Nodes by name."""
    return await work.nodes.list(search=search, tag=tag, status=status, limit=limit, after=after)


@router.get("/nodes/counts")
async def count_nodes(work: ViewerReads) -> NodeCounts:
    """How many nodes there are, are online, offline and disabled, and have reported faults in the last 24 hours."""
    return await work.nodes.counts()


@router.get("/nodes/{node_id}")
async def get_node(work: ViewerReads, node_id: Id) -> NodeDetail:
    """One node: what it is, what it is to run, what it runs."""
    return await work.nodes.get(node_id)


@router.patch("/nodes/{node_id}")
async def change_node(work: OperatorWrites, node_id: Id, change: NodeChange) -> NodeDetail:
    """Change name, tags, enabled, console or tracking; a connected node is told at once."""
    return await work.nodes.change(node_id, change)


@router.delete("/nodes/{node_id}", status_code=204)
async def delete_node(work: OwnerWrites, node_id: Id) -> None:
    """Forget a node; it must enrol again."""
    await work.nodes.delete(node_id)


@router.post("/nodes/{node_id}/commands")
async def command_node(portal: Public, caller: OperatorCalls, node_id: Id, form: CommandForm) -> CommandResult:
    """Send a command to a node and wait for its answer: its result, its refusal, or 409 `node_offline`."""
    return await portal.hub.command(caller, node_id, form.command)


@router.put("/nodes/{node_id}/iot-hub")
async def set_iot_hub(work: OperatorWrites, node_id: Id, form: IotHubForm) -> NodeDetail:
    """Say how the node reaches its IoT Hub; the connection string is stored encrypted and never shown again."""
    return await work.nodes.set_iot_hub(node_id, form)


@router.delete("/nodes/{node_id}/iot-hub")
async def clear_iot_hub(work: OperatorWrites, node_id: Id) -> NodeDetail:
    """Forget how the node reaches its IoT Hub."""
    return await work.nodes.clear_iot_hub(node_id)


@router.get("/nodes/{node_id}/events")
async def list_events(work: ViewerReads, node_id: Id, limit: Limit = 100, after: After = None) -> Page[NodeEventView]:
    """The node's timeline, newest first."""
    return await work.nodes.events(node_id, limit=limit, after=after)


@router.get("/nodes/{node_id}/faults")
async def list_node_faults(work: ViewerReads, node_id: Id, limit: Limit = 100, after: After = None) -> Page[FaultView]:
    """The node's faults, newest first."""
    return await work.faults.list(node_id=node_id, limit=limit, after=after)


@router.get("/tags")
async def list_tags(work: ViewerReads) -> list[TagView]:
    """All tags in use."""
    return await work.nodes.tags()


@router.get("/announcements")
async def list_announcements(work: ViewerReads) -> list[AnnouncementView]:
    """Machines that announced themselves and wait to be claimed."""
    return await work.nodes.announcements()


@router.post("/announcements/{announcement_id}/claim", status_code=201)
async def claim(work: OperatorWrites, announcement_id: Id, form: ClaimForm) -> NodeDetail:
    """Make a node of an announced machine."""
    return await work.nodes.claim(announcement_id, form)


@router.delete("/announcements/{announcement_id}", status_code=204)
async def dismiss(work: OperatorWrites, announcement_id: Id) -> None:
    """Forget an announcement."""
    await work.nodes.dismiss(announcement_id)
