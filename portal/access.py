"""Who may call: the annotations that every handler and page names in its signature.

    @router.get("/nodes")
    async def list_nodes(work: ViewerReads) -> Page[NodeView]: ...

`request.state.portal` is the Portal in API handlers and in pages alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import SecretStr

from portal.errors import NotSignedInError
from portal.portal import Portal
from portal.views import Role
from portal.work import Caller, Work

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
    return await portal_of(request).accounts.caller_of(SecretStr(token))


def address_of(request: Request) -> str:
    """Where the request came from."""
    return request.client.host if request.client else ""


def _caller(role: Role) -> Callable[[Request], Awaitable[Caller]]:
    async def dependency(request: Request) -> Caller:
        caller = await caller_of(request)
        if caller is None:
            raise NotSignedInError("You are not signed in, or your session has ended; sign in again.")
        caller.require(role)
        return caller

    return dependency


def _reading(role: Role) -> Callable[[Request], AsyncIterator[Work]]:
    identify = _caller(role)

    async def dependency(request: Request) -> AsyncIterator[Work]:
        caller = await identify(request)
        async with portal_of(request).reading(caller) as work:
            yield work

    return dependency


def _writing(role: Role) -> Callable[[Request], AsyncIterator[Work]]:
    identify = _caller(role)

    async def dependency(request: Request) -> AsyncIterator[Work]:
        caller = await identify(request)
        async with portal_of(request).writing(caller) as work:
            yield work

    return dependency


Public = Annotated[Portal, Depends(portal_of)]
"""Nobody has to be signed in."""
ViewerCalls = Annotated[Caller, Depends(_caller("viewer"))]
"""Whoever is signed in; no transaction."""
OperatorCalls = Annotated[Caller, Depends(_caller("operator"))]
"""An operator or owner; no transaction."""

# Scope "function": the transaction ends, and its commit may fail, before the answer is sent.
ViewerReads = Annotated[Work, Depends(_reading("viewer"), scope="function")]
"""Whoever is signed in."""
OperatorReads = Annotated[Work, Depends(_reading("operator"), scope="function")]
"""An operator or owner."""
OperatorWrites = Annotated[Work, Depends(_writing("operator"), scope="function")]
"""An operator or owner."""
OwnerWrites = Annotated[Work, Depends(_writing("owner"), scope="function")]
"""An owner."""

Limit = Annotated[int, Query(ge=1, le=500, description="At most this many.")]
After = Annotated[str | None, Query(max_length=200, description="The `next` of the previous part.")]
Search = Annotated[str, Query(max_length=200, description="Text to look for, without regard to case.")]
