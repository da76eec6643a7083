"""The node hub's endpoints and the scripts' download. Nodes call these, not people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response, WebSocket

from portal.access import Public, address_of
from portal.errors import NotSignedInError
from portal.portal import Portal

router = APIRouter(include_in_schema=False)
OrganizationId = Annotated[str, Path(max_length=36)]
File = Annotated[str, Path(max_length=100)]
Authorization = Annotated[str, Header(max_length=200)]
_TRANSPORTS = [{"transport": "WebSockets", "transferFormats": ["Text", "Binary"]}]


@router.post("/nodeHub/negotiate")
async def negotiate(portal: Public, request: Request) -> dict[str, Any]:
    """Hand out a connection id and a nonce."""
    connection_id, nonce = portal.hub.negotiate(address_of(request))
    return {
        "negotiateVersion": 0,
        "connectionId": connection_id,
        "nonce": nonce,
        "availableTransports": _TRANSPORTS,
    }


@router.websocket("/nodeHub")
async def hub(websocket: WebSocket) -> None:
    """A node's connection; refused with 403 unless it was negotiated just before."""
    portal: Portal = websocket.state.portal
    address = websocket.client.host if websocket.client else ""
    connection = portal.hub.open(websocket.query_params.get("id", ""), address)
    if connection is None:
        await websocket.close(1008, "Negotiate first; a connection id is good once and for 30 s.")
        return
    try:
        await connection.serve(websocket, portal.hub.handle)
    finally:
        await portal.hub.closed(connection)


@router.get("/api/Scripts/{organization_id}/{file}")
async def latest_script(
    portal: Public, organization_id: OrganizationId, file: File, authorization: Authorization = ""
) -> Response:
    """The newest version of a script, for a connected node's bearer token."""
    return await _script(portal, organization_id, file, "", authorization)


@router.get("/api/Scripts/{organization_id}/{file}/{version}")
async def script_version(
    portal: Public,
    organization_id: OrganizationId,
    file: File,
    version: Annotated[str, Path(max_length=20)],
    authorization: Authorization = "",
) -> Response:
    """A version of a script, for a connected node's bearer token."""
    return await _script(portal, organization_id, file, version, authorization)


async def _script(portal: Portal, organization_id: str, file: str, version: str, authorization: str) -> Response:
    scheme, _, token = authorization.partition(" ")
    bearer = token if scheme.lower() == "bearer" and token else None
    content = await portal.hub.script(organization_id, file, version, bearer)
    if content is None:
        raise NotSignedInError(
            "There is no such script, or no connected node has this token.", code="script_not_available"
        )
    return Response(content, media_type="text/x-python")
