"""Who may call: the annotations that every handler and page names in its signature.

    @router.get("/nodes")
    async def list_nodes(work: ReadingViewer) -> Page[NodeView]: ...

`request.state.portal` is the Portal in API handlers and in pages alike.
"""

from __future__ import annotations

from fastapi import Request
from pydantic import SecretStr

from portal.portal import Portal
from portal.work import Caller

SESSION_COOKIE = "outstation_session"


def portal_of(request: Request) -> Portal:
    """The portal that serves this request."""
    portal: Portal = request.state.portal
    return portal


async def caller_of(request: Request) -> Caller | None:
    """Who is signed in on this request; None when nobody is."""
    token = request.cookies.get(SESSION_COOKIE)
    if not token:
        return None
    async with portal_of(request).reading(None) as work:
        return await work.people.caller_of(SecretStr(token))
