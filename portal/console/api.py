"""The console: recent lines, a live stream, and the switch."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from portal.access import OperatorWrites, Public, ViewerCalls, ViewerReads
from portal.bus import Bus, console_topic
from portal.console.views import ConsoleLine, ConsoleSwitch

router = APIRouter(tags=["console"])
Node = Annotated[str, Query(max_length=63, description="A node's id or name; empty: all.")]
KEEP_ALIVE_SECONDS = 15.0


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
async def stream_lines(portal: Public, caller: ViewerCalls, node: Node = "") -> StreamingResponse:
    """Lines as they come, as server-sent events; a line that a slow reader missed shows as a gap in the ids."""
    return StreamingResponse(
        _events(portal.bus, caller.organization_id, node.casefold()),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


@router.put("/nodes/{node_id}/console", status_code=204)
async def switch_console(
    work: OperatorWrites, node_id: Annotated[str, Path(max_length=36)], form: ConsoleSwitch
) -> None:
    """Switch a node's console on for 30 minutes, or off."""
    await work.console.switch(node_id, on=form.on)


async def _events(bus: Bus, organization_id: str, node: str) -> AsyncIterator[str]:
    async with bus.subscribe(console_topic(organization_id)) as lines:
        yield ": connected\n\n"
        while True:
            try:
                event = await lines.next(KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event is None:
                return
            line = event.data
            if not node or node in (line["node_id"], line["node"].casefold()):
                yield f"id: {line['id']}\ndata: {json.dumps(dict(line))}\n\n"
