"""The node hub, put together: what comes from nodes goes to the part that answers it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.hub.protocol import ARGUMENTS_INVALID, ERROR_INVALID_REQUEST, Invocation
from portal.errors import PortalError
from portal.hub.commands import Commands
from portal.hub.connection import NodeConnection, Reply
from portal.hub.deployments import Deployments
from portal.hub.enrolment import Enrolment
from portal.hub.limits import HubLimits
from portal.hub.presence import Presence
from portal.hub.records import MalformedArgumentsError, clip
from portal.hub.refusal import RefusalError
from portal.hub.registry import Registry
from portal.hub.reports import Reports
from portal.hub.views import CommandName, CommandResult
from portal.nodes.models import Announcement, Node
from portal.organizations.repository import OrganizationRepository
from portal.services.repository import ServiceRepository
from portal.services.script import service_id
from portal.work import Caller, Work

if TYPE_CHECKING:
    from portal.portal import Portal

log = logging.getLogger(__name__)

_SIGN_IN = frozenset({"signIn", "signInAsync"})
_AFTER_SIGN_IN = frozenset({"heartBeat", "logMessage", "reconnected", "signedIn"})
"""What an agent that has signed in on another connection goes on with."""


class HubService:
    """The nodes' connections. On the loop only."""

    def __init__(self, portal: Portal, limits: HubLimits) -> None:
        self._portal = portal
        self._registry = Registry(portal, limits)
        self._enrolment = Enrolment(portal, self._registry)
        self._deployments = Deployments(portal, self._registry)
        self._presence = Presence(portal, self._registry, self._deployments)
        self._commands = Commands(portal, self._registry)
        reports = Reports(portal, self._registry)
        self._handlers: dict[str, Callable[[NodeConnection, list[Any]], Awaitable[Reply]]] = {
            "createNode": self._enrolment.create_node,
            "createNodeFromMacAddress": self._enrolment.create_node_from_mac_address,
            "assertNode": self._enrolment.announce,
            "signInAsync": self._presence.sign_in,
            "signIn": self._presence.sign_in,
            "signOut": self._presence.sign_out,
            "signedIn": reports.nothing,
            "reconnected": reports.nothing,
            "heartBeat": reports.heart_beat,
            "logMessage": reports.log_message,
            "notify": reports.notify,
            "pingResponse": reports.ping_response,
            "reportStateResponse": reports.report_state_response,
            "serviceStates": reports.service_states,
            "deploymentState": reports.deployment_state,
            "facts": reports.facts,
            "faults": reports.faults,
        }

    # --- For the endpoint -------------------------------------------------------------------------------------------

    def negotiate(self, address: str) -> tuple[str, str]:
        """Hand out a connection id and a nonce. Raises ConflictError (`hub_full`)."""
        return self._registry.negotiate(address)

    def open(self, connection_id: str, address: str) -> NodeConnection | None:
        """The connection that was negotiated as `connection_id`; None when there is none, or not any more."""
        return self._registry.open(connection_id, address)

    async def closed(self, connection: NodeConnection) -> None:
        """Note that a connection has ended."""
        node_id = self._registry.forget(connection)
        if node_id is not None and not self._registry.closing:
            await self._presence.gone_offline(connection, node_id)

    async def handle(self, connection: NodeConnection, call: Invocation) -> Reply:
        """Answer a call of a node. Never raises: a fault of the portal is told as one, and logged."""
        handler = self._handlers.get(call.target)
        if handler is None:
            return Reply(error=f"This portal does not know {clip(call.target, 100)}.")
        if not connection.began:
            connection.began = True
            if call.target in _AFTER_SIGN_IN:
                # An original agent whose connection broke opens another one and goes on as if it were signed in; it
                # signs in only when it starts.
                return Reply(then=(Invocation("restart", []),))
        try:
            return await handler(connection, call.arguments)
        except MalformedArgumentsError as error:
            return Reply(error=f"{ARGUMENTS_INVALID}The arguments of {call.target} are not valid: {clip(error, 500)}")
        except RefusalError as refusal:
            log.info(
                "%s from %s was refused: %s",
                call.target,
                connection.address,
                refusal,
                extra={"action": "node_refused"},
            )
            return Reply(then=(Invocation("errorMessage", refusal.arguments),))
        except PortalError as error:
            return Reply(then=(Invocation("errorMessage", [error.detail, ERROR_INVALID_REQUEST, error.problem_code]),))
        except Exception:
            log.exception("%s from %s failed.", call.target, connection.address, extra={"action": "hub_call_failed"})
            text = "The portal has a fault and could not carry this out; try again later."
            # Without an answer a node that signs in would wait for nothing.
            signed_in = connection.node_id is not None and call.target not in _SIGN_IN
            return Reply(error=text, close=None if signed_in else text)

    async def script(self, organization_id: str, file: str, version: str, token: str | None) -> bytes | None:
        """A script for a node; None when there is none or the node may not have it."""
        async with self._portal.database.reading() as session:
            if token is None:
                organization = await OrganizationRepository(session).get(organization_id)
                if organization is None or not organization.allow_original_agents:
                    return None
            elif not self._registry.script_allowed(token, organization_id):
                return None
            services = ServiceRepository(session)
            service = await services.get(organization_id, service_id(file))
            if service is None or service.file != file:
                return None
            found = await (
                services.version(organization_id, service.id, version)
                if version
                else services.latest(organization_id, service.id)
            )
            return found.source.encode() if found is not None else None

    # --- For the portal's start and end -----------------------------------------------------------------------------

    async def nobody_is_online(self, text: str) -> None:
        """Store that every node is offline: at start, because the last run may have been killed, and at the end."""
        await self._presence.nobody_is_online(text)

    async def refresh_forever(self) -> None:
        """Do what `refresh` asked for, until cancelled."""
        await self._deployments.refresh_forever()

    def close(self, reason: str) -> None:
        """End every connection, because the portal ends."""
        self._registry.close(reason)

    async def wait_closed(self, timeout_seconds: float) -> None:
        """Wait until every connection has ended, so that nodes hear why, but not for one that does not read."""
        await self._registry.wait_closed(timeout_seconds)

    # --- For services, pages and API --------------------------------------------------------------------------------

    async def command(self, caller: Caller, node_id: str, command: CommandName) -> CommandResult:
        """Send a command and wait for the answer, 10 seconds at most.

        Raises NotFoundError, ConflictError (`node_offline`), NodeSilentError.
        """
        return await self._commands.command(caller, node_id, command)

    def refresh(self, node_ids: Iterable[str]) -> None:
        """Tell these nodes, if they are connected, what is different from what they were told."""
        self._deployments.refresh(node_ids)

    def refresh_organization(self, organization_id: str) -> None:
        """The same for every connected node of an organisation."""
        self._deployments.refresh(self._registry.nodes_of(organization_id))

    async def claim(self, work: Work, announcement: Announcement, *, name: str, tags: Sequence[str]) -> Node:
        """Make a node of an announced machine and tell it once that is stored.

        Raises ConflictError (`node_offline`, `original_agents_not_allowed`, `node_name_taken`), InvalidError.
        """
        return await self._enrolment.claim(work, announcement, name=name, tags=tags)

    def announced(self, announcement_id: str) -> bool:
        """Whether an announced machine waits on an open connection."""
        return self._registry.announced(announcement_id) is not None

    def dismiss(self, announcement_id: str) -> None:
        """End the connection of an announced machine."""
        connection = self._registry.announced(announcement_id)
        if connection is not None:
            connection.close("The announcement was dismissed in the portal.")

    def disconnect(self, node_id: str, reason: str) -> None:
        """End a deleted node's connection, and forget what it wrote."""
        self._portal.console_book.forget(node_id)
        connection = self._registry.connection_of(node_id)
        if connection is not None:
            connection.close(reason)

    def connection_of(self, node_id: str) -> NodeConnection | None:
        """The connection on which a node is signed in."""
        return self._registry.connection_of(node_id)

    def last_seen_at(self, node_id: str) -> datetime | None:
        """When a connected node was last heard."""
        return self._registry.last_seen_at(node_id)
