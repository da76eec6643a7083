"""The console: recent lines, a live stream, and the switch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse

from portal.access import OperatorWrites, Public, ViewerCalls, ViewerReads, caller_of
from portal.bus import console_topic
from portal.console.views import ConsoleLine, ConsoleSwitch
from portal.portal import Portal

router = APIRouter(tags=["console"])
Node = Annotated[str, Query(max_length=63, description="A node's id or name; empty: all.")]
KEEP_ALIVE_SECONDS = 15.0
RECHECK_SECONDS = 60.0
"""So often a stream looks whether its session still holds."""


@router.get("/console")
async def recent_lines(
    work: ViewerReads,
    node: Node = "",
    limit: Annotated[int, Query(ge=1, le=2000)] = 500,
    after: Annotated[int, Query(ge=0, description="Only lines with a higher id.")] = 0,
) -> list[ConsoleLine]:
    """The last lines, oldest first."""
    return work.console.recent(node=node, limit=limit, after=after)


@router.get(
    "/console/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Each event's data is a ConsoleLine."}},
)
async def stream_lines(portal: Public, caller: ViewerCalls, request: Request, node: Node = "") -> StreamingResponse:
    """Lines as they come, as server-sent events; a line that a slow reader missed shows as a gap in the ids.

    It ends within a minute when the session does.
    """
    return StreamingResponse(
        _events(portal, request, caller.organization_id, node.casefold()),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


@router.put("/nodes/{node_id}/console", status_code=204)
async def switch_console(
    work: OperatorWrites, node_id: Annotated[str, Path(max_length=36)], form: ConsoleSwitch
) -> None:
    """Switch a node's console on for 30 minutes, or off."""
    await work.console.switch(node_id, on=form.on)


async def _events(portal: Portal, request: Request, organization_id: str, node: str) -> AsyncIterator[str]:
    checked_at = portal.clock.monotonic()
    async with portal.bus.subscribe(console_topic(organization_id)) as lines:
        yield ": connected\n\n"
        while True:
            text = ": still here\n\n"
            with contextlib.suppress(TimeoutError):
                event = await lines.next(KEEP_ALIVE_SECONDS)
                if event is None:
                    return
                line = event.data
                if node and node not in (line["node_id"], line["node"].casefold()):
                    continue
                text = f"id: {line['id']}\ndata: {json.dumps(dict(line))}\n\n"
            if portal.clock.monotonic() - checked_at >= RECHECK_SECONDS:
                if await caller_of(request) is None:
                    return
                checked_at = portal.clock.monotonic()
            yield text
