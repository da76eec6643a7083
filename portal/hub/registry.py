"""Who is connected: negotiated, open, signed in, announced. On the loop only."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from portal.bus import nodes_topic
from portal.errors import ConflictError
from portal.hub.connection import NodeConnection, Told
from portal.hub.limits import HubLimits
from portal.nodes.models import Node
from portal.vault import hash_token

if TYPE_CHECKING:
    from portal.portal import Portal


@dataclass(frozen=True, slots=True)
class _Negotiated:
    nonce: str
    address: str
    until: float


class Registry:
    """The connections of this portal process."""

    def __init__(self, portal: Portal, limits: HubLimits) -> None:
        self.limits = limits
        self.closing = False
        self._portal = portal
        self._negotiated: dict[str, _Negotiated] = {}
        self._open: set[NodeConnection] = set()
        self._nodes: dict[str, NodeConnection] = {}
        self._announced: dict[str, NodeConnection] = {}
        self._script_tokens: dict[str, NodeConnection] = {}

    def negotiate(self, address: str) -> tuple[str, str]:
        """Hand out a connection id and a nonce, good once and for 30 s.

        Raises ConflictError (`hub_full`) when too many are waiting to be opened.
        """
        now = time.monotonic()
        while self._negotiated:
            first = next(iter(self._negotiated))
            if self._negotiated[first].until > now:
                break
            del self._negotiated[first]
        if len(self._negotiated) >= self.limits.negotiations:
            raise ConflictError("Too many connections are being opened; try again later.", code="hub_full")
        connection_id = secrets.token_hex(16)
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        self._negotiated[connection_id] = _Negotiated(nonce, address, now + self.limits.handshake_seconds)
        return connection_id, nonce

    def open(self, connection_id: str, address: str) -> NodeConnection | None:
        """The connection that was negotiated as `connection_id`; None when there is none, or not any more."""
        negotiated = self._negotiated.pop(connection_id, None)
        if negotiated is None or negotiated.until < time.monotonic() or self.closing:
            return None
        connection = NodeConnection(connection_id, negotiated.nonce, address, self.limits)
        self._open.add(connection)
        return connection

    def forget(self, connection: NodeConnection) -> str | None:
        """Note that a connection has ended; the id of the node that is gone with it, if one is."""
        self._open.discard(connection)
        self._forget_announcement(connection)
        self._forget_token(connection)
        return self.leave(connection)

    def _forget_token(self, connection: NodeConnection) -> None:
        if connection.script_token_hash is not None:
            self._script_tokens.pop(connection.script_token_hash, None)
            connection.script_token_hash = None

    def _forget_announcement(self, connection: NodeConnection) -> None:
        if connection.announcement_id is not None and self._announced.get(connection.announcement_id) is connection:
            del self._announced[connection.announcement_id]
        connection.announcement_id = None

    def enter(self, connection: NodeConnection, node: Node, told: Told, token: str) -> None:
        """A node signed in; an older connection of it is closed, and the token of an earlier sign-in ends."""
        self._forget_token(connection)
        connection.node_id = node.id
        connection.node_name = node.name
        connection.organization_id = node.organization_id
        connection.original = node.kind == "original"
        connection.told = told
        if not connection.original:
            connection.script_token_hash = hash_token(token)
            self._script_tokens[connection.script_token_hash] = connection
        before = self._nodes.get(node.id)
        self._nodes[node.id] = connection
        if before is not None and before is not connection:
            before.close("Another connection of this node has taken its place.", reconnect=False)

    def leave(self, connection: NodeConnection) -> str | None:
        """A node signed out; its id, unless another connection has taken its place."""
        node_id = connection.node_id
        if node_id is None or self._nodes.get(node_id) is not connection:
            return None
        del self._nodes[node_id]
        return node_id

    def enter_announced(self, connection: NodeConnection, announcement_id: str) -> None:
        """A machine announced itself; an older connection of it is closed."""
        self._forget_announcement(connection)
        before = self._announced.get(announcement_id)
        connection.announcement_id = announcement_id
        self._announced[announcement_id] = connection
        if before is not None:
            before.close("Another connection of this machine has taken its place.")

    def leave_announced(self, announcement_id: str) -> None:
        """An announced machine was claimed."""
        connection = self._announced.pop(announcement_id, None)
        if connection is not None:
            connection.announcement_id = None

    def close(self, reason: str) -> None:
        """End every connection, because the portal ends."""
        self.closing = True
        for connection in self._open:
            connection.close(reason)

    async def wait_closed(self, timeout_seconds: float) -> None:
        """Wait until every connection has ended, so that nodes hear why, but not for one that does not read."""
        waiting = [asyncio.create_task(connection.closed.wait()) for connection in self._open]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_seconds)
            for task in late:
                task.cancel()

    def connection_of(self, node_id: str) -> NodeConnection | None:
        """The connection on which a node is signed in."""
        return self._nodes.get(node_id)

    def nodes_of(self, organization_id: str) -> list[str]:
        """The connected nodes of an organisation."""
        return [key for key, connection in self._nodes.items() if connection.organization_id == organization_id]

    def connected(self, node_ids: Iterable[str]) -> set[str]:
        """Those of these nodes that are connected."""
        return {node_id for node_id in node_ids if node_id in self._nodes}

    def announced(self, announcement_id: str) -> NodeConnection | None:
        """The connection on which an announced machine waits."""
        return self._announced.get(announcement_id)

    def script_allowed(self, token: str, organization_id: str) -> bool:
        """Whether a bearer token is that of a connected node of the organisation."""
        connection = self._script_tokens.get(hash_token(token))
        return connection is not None and connection.organization_id == organization_id

    def last_seen_at(self, node_id: str) -> datetime | None:
        """When a connected node was last heard."""
        connection = self._nodes.get(node_id)
        if connection is None:
            return None
        wall = self._portal.clock.wall() - (time.monotonic() - connection.heard_at)
        return datetime.fromtimestamp(wall, UTC)

    def publish(self, organization_id: str, change: str, node_id: str, name: str) -> None:
        """Tell who watches that something happened to a node."""
        self._portal.bus.publish(nodes_topic(organization_id), {"change": change, "node_id": node_id, "node": name})
