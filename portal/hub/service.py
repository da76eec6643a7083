"""What the portal does for nodes: enrol, sign in, listen, deploy, command."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.hub.protocol import (
    ERROR_INVALID_CODE,
    ERROR_INVALID_REQUEST,
    ERROR_NODE_LOCKED,
    ERROR_NODE_NOT_FOUND,
    ERROR_ORGANIZATION_NOT_FOUND,
    ERROR_SECRET_NOT_VALID,
    NAME_TAKEN_REASON,
    Invocation,
    sign_in_challenge,
)
from portal.bus import nodes_topic
from portal.console.service import plain_text
from portal.errors import ConflictError, InvalidError, NodeSilentError, NotFoundError, PortalError
from portal.faults.models import Fault
from portal.faults.repository import FaultRepository
from portal.flows.plan import Assignment
from portal.hub import documents
from portal.hub.connection import NodeConnection, PendingCommand, Reply, Told
from portal.hub.limits import HubLimits
from portal.hub.records import (
    FACTS_LIMIT_BYTES,
    FAULTS_AT_ONCE,
    SERVICES_AT_ONCE,
    AnnounceRequest,
    ConsoleDetails,
    CreateNodeFacts,
    DeploymentReport,
    FaultReport,
    MalformedArgumentsError,
    ServiceReport,
    SignInRequest,
    argument,
    clip,
    moment,
    read,
)
from portal.hub.views import CommandName, CommandResult
from portal.nodes.models import Announcement, Node, NodeService
from portal.nodes.repository import NodeRepository
from portal.nodes.service import IotHubSecret, check_name, check_tags, free_name, hash_code, name_taken, new_node
from portal.organizations.models import Organization
from portal.organizations.repository import OrganizationRepository
from portal.people.throttle import Throttle
from portal.vault import hash_token
from portal.work import Caller, Work

if TYPE_CHECKING:
    from portal.portal import Portal

log = logging.getLogger(__name__)

REFRESH_BATCH = 200
ERROR_NOT_ON_WHITE_LIST = 3
"""The original's code for a hardware address that is not on the white-list."""
_LEVELS = frozenset({"debug", "info", "warning", "error", "status"})
_DEPLOYMENT_STATES = frozenset({"running", "staged", "failed"})


class RefusalError(Exception):
    """A node is refused with `errorMessage`; the transaction changes nothing."""

    def __init__(self, text: str, code: int, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.arguments: list[str | int] = [text, code, reason] if reason else [text, code]


@dataclass(frozen=True, slots=True)
class _Negotiated:
    nonce: str
    address: str
    until: float


class HubService:
    """The nodes' connections. On the loop only."""

    def __init__(self, portal: Portal, limits: HubLimits) -> None:
        self.limits = limits
        self._portal = portal
        self._codes = Throttle(portal.clock)
        self._negotiated: dict[str, _Negotiated] = {}
        self._open: set[NodeConnection] = set()
        self._nodes: dict[str, NodeConnection] = {}
        self._announced: dict[str, NodeConnection] = {}
        self._script_tokens: dict[str, NodeConnection] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._handlers: dict[str, Callable[[NodeConnection, list[Any]], Awaitable[Reply]]] = {
            "createNode": self._create_node,
            "createNodeFromMacAddress": self._create_node_from_mac_address,
            "assertNode": self._announce,
            "signInAsync": self._sign_in,
            "signIn": self._sign_in,
            "signedIn": self._nothing,
            "signOut": self._sign_out,
            "reconnected": self._nothing,
            "heartBeat": self._heart_beat,
            "logMessage": self._log_message,
            "notify": self._notify,
            "pingResponse": self._ping_response,
            "reportStateResponse": self._report_state_response,
            "serviceStates": self._service_states,
            "deploymentState": self._deployment_state,
            "facts": self._facts,
            "faults": self._faults,
        }

    # --- Connections ------------------------------------------------------------------------------------------------

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
        if negotiated is None or negotiated.until < time.monotonic() or self._closing:
            return None
        connection = NodeConnection(connection_id, negotiated.nonce, address, self.limits)
        self._open.add(connection)
        return connection

    async def closed(self, connection: NodeConnection) -> None:
        """Note that a connection has ended."""
        self._open.discard(connection)
        if connection.announcement_id is not None and self._announced.get(connection.announcement_id) is connection:
            del self._announced[connection.announcement_id]
        if connection.script_token_hash is not None:
            self._script_tokens.pop(connection.script_token_hash, None)
        node_id = connection.node_id
        if node_id is None or self._nodes.get(node_id) is not connection:
            return
        del self._nodes[node_id]
        if not self._closing:
            await self._gone_offline(connection, node_id)

    async def handle(self, connection: NodeConnection, call: Invocation) -> Reply:
        """Answer a call of a node. Never raises: a fault of the portal is told as one, and logged."""
        handler = self._handlers.get(call.target)
        if handler is None:
            return Reply(error=f"This portal does not know {clip(call.target, 100)}.")
        try:
            return await handler(connection, call.arguments)
        except MalformedArgumentsError as error:
            return Reply(error=f"The arguments of {call.target} are not valid: {clip(error, 500)}")
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
            return Reply(error=text, close=None if connection.node_id else text)

    def close(self, reason: str) -> None:
        """End every connection, because the portal ends."""
        self._closing = True
        for connection in self._open:
            connection.close(reason)

    async def wait_closed(self, timeout_seconds: float) -> None:
        """Wait until every connection has ended, so that nodes hear why, but not for one that does not read."""
        waiting = [asyncio.create_task(connection.closed.wait()) for connection in self._open]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_seconds)
            for task in late:
                task.cancel()

    def disconnect(self, node_id: str, reason: str) -> None:
        """End a node's connection."""
        connection = self._nodes.get(node_id)
        if connection is not None:
            connection.close(reason)

    def announced(self, announcement_id: str) -> bool:
        """Whether an announced machine waits on an open connection."""
        return announcement_id in self._announced

    def dismiss(self, announcement_id: str) -> None:
        """End the connection of an announced machine."""
        connection = self._announced.get(announcement_id)
        if connection is not None:
            connection.close("The announcement was dismissed in the portal.")

    def last_seen_at(self, node_id: str) -> datetime | None:
        """When a connected node was last heard."""
        connection = self._nodes.get(node_id)
        if connection is None:
            return None
        wall = self._portal.clock.wall() - (time.monotonic() - connection.heard_at)
        return datetime.fromtimestamp(wall, UTC)

    def connection_of(self, node_id: str) -> NodeConnection | None:
        """The connection on which a node is signed in."""
        return self._nodes.get(node_id)

    async def nobody_is_online(self, text: str) -> None:
        """Store that every node is offline: at start, because the last run may have been killed, and at the end."""
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            for node in await nodes.online_nodes():
                node.online = False
                node.presence_since = now
                nodes.record(node, now, "offline", text)

    def script_allowed(self, token: str, organization_id: str) -> bool:
        """Whether a bearer token is that of a connected node of the organisation."""
        connection = self._script_tokens.get(hash_token(token))
        return connection is not None and connection.organization_id == organization_id

    async def script(self, organization_id: str, file: str, version: str, token: str | None) -> bytes | None:
        """A script for a node; None when there is none or the node may not have it."""
        from portal.services.repository import ServiceRepository
        from portal.services.script import service_id

        async with self._portal.database.reading() as session:
            if token is None:
                organization = await OrganizationRepository(session).get(organization_id)
                if organization is None or not organization.allow_original_agents:
                    return None
            elif not self.script_allowed(token, organization_id):
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

    # --- Enrolment --------------------------------------------------------------------------------------------------

    async def _create_node(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        code = read(argument(arguments, 0), str, "code")
        prefix = clip(argument(arguments, 1), 255)
        name = clip(argument(arguments, 2), 255)
        facts = read(arguments[3], CreateNodeFacts, "facts") if len(arguments) > 3 else None
        public_key = _public_key(facts.public_key) if facts is not None else None
        self._codes.check("code", connection.address)
        now = self._portal.now()
        sas = None if facts is not None else secrets.token_urlsafe(32)
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            row = await nodes.code(hash_code(self._portal.vault, code))
            if row is None or row.used_at is not None or row.expires_at <= now:
                self._codes.failed("code", connection.address)
                raise RefusalError(
                    "The verification code is not valid: it is wrong, used, or older than it may be. "
                    "Make a new one in the portal under Nodes.",
                    ERROR_INVALID_CODE,
                )
            organization = await self._organization(work, row.organization_id)
            self._check_original(organization, original=facts is None)
            node = await self._enrol(
                work,
                organization,
                name=name or row.node_name,
                prefix=prefix,
                tags=row.tags,
                public_key=public_key,
                sas=sas,
                text=f"Enrolled with a verification code of {row.created_by}.",
            )
            if facts is not None:
                node.machine_name = clip(facts.machine_name, 255)
                node.agent_version = clip(facts.agent_version, 50)
                node.platform = clip(facts.platform, 200)
            row.used_at = now
            document = documents.created_document(node, organization, row.tags, sas=sas)
        self._codes.succeeded("code", connection.address)
        return Reply(then=(Invocation("nodeCreated", [document]),))

    async def _create_node_from_mac_address(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        raise RefusalError(
            "None of the machine's hardware addresses is on the white-list; enrol it with a verification code.",
            ERROR_NOT_ON_WHITE_LIST,
        )

    async def _enrol(
        self,
        work: Work,
        organization: Organization,
        *,
        name: str,
        prefix: str,
        tags: Sequence[str],
        public_key: bytes | None,
        sas: str | None,
        text: str,
    ) -> Node:
        nodes = NodeRepository(work.session)
        name = name or await free_name(nodes, organization.id, prefix)
        try:
            check_name(name)
        except InvalidError as error:
            raise RefusalError(error.detail, ERROR_INVALID_REQUEST, error.problem_code) from error
        if await nodes.by_name(organization.id, name) is not None:
            raise RefusalError(name_taken(name).detail, ERROR_INVALID_REQUEST, NAME_TAKEN_REASON)
        now = self._portal.now()
        node = new_node(
            organization_id=organization.id,
            name=name,
            kind="outstation" if public_key is not None else "original",
            now=now,
            public_key=public_key,
            sas_hash=None if sas is None else hash_token(sas),
        )
        nodes.add(node)
        await work.session.flush()
        await nodes.set_tags(node.id, tags)
        nodes.record(node, now, "enrolled", text)
        work.after_commit(lambda: self._publish(node, "enrolled"))
        return node

    async def _announce(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        request = read(argument(arguments, 0), AnnounceRequest, "host")
        public_key = _public_key(request.public_key) if request.public_key else None
        addresses = request.mac_addresses or ""
        if isinstance(addresses, str):
            addresses = addresses.split(",")
        macs = [clip(address.strip(), 50) for address in addresses[:50] if address.strip()]
        host_name = clip(request.host_name, 255)
        identity = hashlib.sha256(repr((host_name, sorted(macs), public_key)).encode()).hexdigest()
        organization_id = self._portal.organization_id
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            row = await nodes.announcement_by_identity(organization_id, identity)
            if row is None:
                if await nodes.announcement_count(organization_id) >= self.limits.announcements:
                    raise RefusalError(
                        "Too many machines wait to be claimed; dismiss some in the portal.", ERROR_INVALID_REQUEST
                    )
                row = Announcement(
                    id=str(uuid.uuid4()),
                    organization_id=organization_id,
                    identity=identity,
                    host_name=host_name,
                    mac_addresses=macs,
                    public_key=public_key,
                )
                nodes.add(row)
            row.imei = clip(request.imei, 64)
            row.ip_address = clip(request.ip_address, 64) or connection.address
            row.announced_at = self._portal.now()
            announcement_id = row.id
        connection.announcement_id = announcement_id
        self._announced[announcement_id] = connection
        self._portal.bus.publish(
            nodes_topic(organization_id), {"change": "announced", "node_id": announcement_id, "node": host_name}
        )
        return Reply()

    async def claim(self, work: Work, announcement: Announcement, *, name: str, tags: Sequence[str]) -> Node:
        """Make a node of an announced machine and tell it once that is stored.

        Raises ConflictError (`node_offline`, `original_agents_not_allowed`, `node_name_taken`), InvalidError.
        """
        connection = self._announced.get(announcement.id)
        if connection is None:
            raise ConflictError(
                f"{announcement.host_name} is not connected; it can be claimed when it announces itself again.",
                code="node_offline",
            )
        organization = await self._organization(work, announcement.organization_id)
        original = announcement.public_key is None
        check_tags(tags)
        try:
            self._check_original(organization, original=original)
            sas = secrets.token_urlsafe(32) if original else None
            node = await self._enrol(
                work,
                organization,
                name=name,
                prefix=announcement.host_name,
                tags=tags,
                public_key=announcement.public_key,
                sas=sas,
                text=f"Claimed by {work.caller.name}.",
            )
        except RefusalError as refusal:
            raise ConflictError(str(refusal), code=refusal.reason or None) from refusal
        document = documents.created_document(node, organization, list(tags), sas=sas)

        def tell() -> None:
            self._announced.pop(announcement.id, None)
            connection.announcement_id = None
            connection.send("nodeCreated", document)

        work.after_commit(tell)
        return node

    def _check_original(self, organization: Organization, *, original: bool) -> None:
        if original and not organization.allow_original_agents:
            raise RefusalError(
                "This organisation does not take agents of the original product; an owner can allow them in the "
                "settings.",
                ERROR_INVALID_REQUEST,
                "original_agents_not_allowed",
            )

    async def _organization(self, work: Work, organization_id: str) -> Organization:
        organization = await OrganizationRepository(work.session).get(organization_id)
        if organization is None:
            raise RefusalError("There is no such organisation on this portal.", ERROR_ORGANIZATION_NOT_FOUND)
        return organization

    # --- Sign-in and presence -----------------------------------------------------------------------------------------

    async def _sign_in(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        request = read(argument(arguments, 0), SignInRequest, "host")
        node_id = await self._identify(connection, request)
        generation = self._portal.plans.generation
        now = self._portal.now()
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            node = await nodes.get(request.organization_id, node_id)
            if node is None:
                raise RefusalError("This node was deleted in the portal.", ERROR_NODE_NOT_FOUND)
            organization = await self._organization(work, node.organization_id)
            if not node.online:
                node.online = True
                node.presence_since = now
                nodes.record(node, now, "online", "Signed in.", address=connection.address)
            node.last_seen_at = now
            node.machine_name = clip(request.machine_name, 255)
            node.agent_version = clip(request.agent_version, 50)
            node.platform = clip(request.platform, 200)
            node.ip_addresses = [clip(address, 64) for address in request.ip_addresses[:50]]
            node.mac_addresses = [clip(address, 64) for address in request.mac_addresses[:50]]
            tags = (await nodes.tags_of([node.id]))[node.id]
            plan = await self._portal.plans.get(organization.id)
            assignments = plan.for_node(node.name, tags)
            self._note_deployment(nodes, node, assignments, now)
            token = secrets.token_urlsafe(32)
            document = self._settings_for(node, organization, tags, assignments, request, token)
        self._enter(connection, node, organization.id, _told(node, tags, self._secret(node)), token)
        self._publish(node, "online")
        # What changed while this transaction was under way was not in its answer.
        if generation != self._portal.plans.generation:
            self.refresh([node.id])
        return Reply(then=(Invocation("signInMessage", [document]),))

    async def _identify(self, connection: NodeConnection, request: SignInRequest) -> str:
        """The id of the node that proves who it is, read without holding up who writes."""
        async with self._portal.database.reading() as session:
            organization = await OrganizationRepository(session).get(request.organization_id)
            if organization is None:
                raise RefusalError("There is no such organisation on this portal.", ERROR_ORGANIZATION_NOT_FOUND)
            nodes = NodeRepository(session)
            if request.ours:
                node = await nodes.get(organization.id, request.id)
            else:
                node = await nodes.by_name(organization.id, request.name)
            if node is None:
                raise RefusalError(
                    f"There is no node {clip(request.name, 80)} on this portal; it may have been deleted. "
                    "Enrol the machine again.",
                    ERROR_NODE_NOT_FOUND,
                )
            if not request.ours and not organization.allow_original_agents:
                # Not a code that makes an original agent forget who it is: the organisation may change its mind.
                raise RefusalError(
                    "This organisation does not take agents of the original product at the moment.", ERROR_NODE_LOCKED
                )
            good = (
                _signature_is_good(connection, request, node.public_key)
                if request.ours
                else _sas_is_good(request.sas, node.sas_hash)
            )
            if not good:
                raise RefusalError(
                    "The node's signature or secret is not valid. Enrol the machine again.", ERROR_SECRET_NOT_VALID
                )
            return node.id

    def _settings_for(
        self,
        node: Node,
        organization: Organization,
        tags: list[str],
        assignments: Sequence[Assignment],
        request: SignInRequest,
        token: str,
    ) -> dict[str, Any]:
        if not request.ours:
            return documents.original_settings(node, organization, tags, assignments, sas=request.sas or "")
        return {
            **documents.settings_document(node, organization, tags),
            "manifest": self._manifest(node, organization, assignments),
            "scriptToken": token,
            "iotHub": documents.iot_hub_document(self._secret(node)),
        }

    def _manifest(self, node: Node, organization: Organization, assignments: Sequence[Assignment]) -> dict[str, str]:
        return documents.sign_manifest(
            self._portal.vault.decrypt(organization.signing_key),
            node_id=node.id,
            organization_id=organization.id,
            services=documents.manifest_services(organization.id, assignments),
        )

    def _secret(self, node: Node) -> IotHubSecret | None:
        if node.iot_hub is None:
            return None
        return msgspec.json.decode(self._portal.vault.decrypt(node.iot_hub), type=IotHubSecret)

    def _note_deployment(
        self, nodes: NodeRepository, node: Node, assignments: Sequence[Assignment], now: datetime
    ) -> None:
        """Store what the node is told to run, and a line in its timeline when that is something else than before."""
        deployment = documents.deployment_of(documents.manifest_services(node.organization_id, assignments))
        if deployment == node.deployment:
            return
        first = not node.deployment
        node.deployment = deployment
        node.deployment_state = "pending" if node.kind == "outstation" else "unknown"
        node.deployment_error = ""
        if assignments or not first:
            services = [f"{item.file} {item.version}" for item in assignments]
            text = f"To run: {', '.join(services)}." if services else "To run nothing."
            nodes.record(node, now, "deployment", text, deployment=deployment, services=services)

    def _enter(self, connection: NodeConnection, node: Node, organization_id: str, told: Told, token: str) -> None:
        connection.node_id = node.id
        connection.node_name = node.name
        connection.organization_id = organization_id
        connection.original = node.kind == "original"
        connection.told = told
        if not connection.original:
            connection.script_token_hash = hash_token(token)
            self._script_tokens[connection.script_token_hash] = connection
        before = self._nodes.get(node.id)
        self._nodes[node.id] = connection
        if before is not None and before is not connection:
            before.close("Another connection of this node has taken its place.", reconnect=False)

    async def _sign_out(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        if self._nodes.get(node_id) is connection:
            del self._nodes[node_id]
            await self._gone_offline(connection, node_id, "Signed out.")
        return Reply()

    async def _gone_offline(
        self, connection: NodeConnection, node_id: str, text: str = "The connection ended."
    ) -> None:
        now = self._portal.now()
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            node = await nodes.get(connection.organization_id, node_id)
            # Deleted, or back already on another connection: then it is not offline.
            if node is None or node_id in self._nodes:
                return
            node.online = False
            node.presence_since = now
            node.last_seen_at = now
            nodes.record(node, now, "offline", text)
            work.after_commit(lambda: self._publish(node, "offline"))

    async def _nothing(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        return Reply()

    async def _heart_beat(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        return Reply(then=(Invocation("heartBeat", [clip(argument(arguments, 0, "echo"), 100)]),))

    # --- What nodes tell ----------------------------------------------------------------------------------------------

    async def _log_message(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        if connection.told is None or not connection.told.console:
            return Reply()
        now = self._portal.now()
        text, level = plain_text(clip(argument(arguments, 1)))
        details = read(argument(arguments, 3) or {}, ConsoleDetails, "details")
        if len(arguments) > 3 and details.level in _LEVELS:
            level = details.level  # type: ignore[assignment]
        self._portal.console_book.append(
            organization_id=connection.organization_id,
            node_id=node_id,
            node=connection.node_name,
            service=clip(details.service, 100),
            level=level,
            text=text,
            time=moment(details.time, now),
        )
        return Reply()

    async def _service_states(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        reports = read(argument(arguments, 0), list[ServiceReport], "states")[:SERVICES_AT_ONCE]
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            if await nodes.get(connection.organization_id, node_id) is None:
                return Reply()
            by_id = {clip(report.id, 100): report for report in reports}
            await nodes.set_services(
                node_id,
                [
                    NodeService(
                        node_id=node_id,
                        service_id=service_id,
                        version=clip(report.version, 20),
                        state=clip(report.state, 20),
                        pid=report.pid,
                        fault=clip(report.fault),
                        since=moment(report.since, now) if report.since is not None else None,
                    )
                    for service_id, report in by_id.items()
                ],
            )
        self._tell(connection, node_id, "services")
        return Reply()

    async def _deployment_state(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        report = read(argument(arguments, 0), DeploymentReport, "deployment")
        if report.state not in _DEPLOYMENT_STATES:
            raise MalformedArgumentsError(f"state: {clip(report.state, 50)!r} is not running, staged or failed")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            node = await nodes.get(connection.organization_id, node_id)
            if node is None:
                return Reply()
            before = (node.reported_deployment, node.deployment_state, node.deployment_error)
            node.reported_deployment = clip(report.deployment, 64)
            node.deployment_state = report.state
            node.deployment_error = clip(report.error)
            if before != (node.reported_deployment, node.deployment_state, node.deployment_error):
                text = f"The deployment is {report.state}." if not report.error else f"The deployment {report.state}: "
                nodes.record(node, now, "deployment", text + node.deployment_error, deployment=node.reported_deployment)
        self._tell(connection, node_id, "changed")
        return Reply()

    async def _facts(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        facts = read(argument(arguments, 0), dict[str, Any], "facts")
        if len(msgspec.json.encode(facts)) > FACTS_LIMIT_BYTES:
            raise MalformedArgumentsError(f"facts: larger than {FACTS_LIMIT_BYTES} bytes")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            node = await NodeRepository(session).get(connection.organization_id, node_id)
            if node is None:
                return Reply()
            node.facts = facts
            node.facts_at = now
            node.last_seen_at = now
        self._tell(connection, node_id, "changed")
        return Reply()

    async def _faults(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        node_id = self._signed_in(connection)
        reports = read(argument(arguments, 0), list[FaultReport], "faults")
        if len(reports) > FAULTS_AT_ONCE:
            raise MalformedArgumentsError(f"faults: more than {FAULTS_AT_ONCE} at once")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            node = await nodes.get(connection.organization_id, node_id)
            if node is None:
                return Reply(error="The node was deleted in the portal.")
            rows = [
                Fault(
                    organization_id=connection.organization_id,
                    node_id=node_id,
                    stream=clip(report.stream, 64),
                    service=clip(report.service, 100),
                    sequence=report.sequence,
                    boot=clip(report.boot, 64),
                    code=clip(report.code, 50),
                    text=clip(report.text),
                    description=clip(report.description),
                    at=moment(report.time, now),
                    received_at=now,
                )
                for report in reports
                if report.kind == "fault"
            ]
            stored = await FaultRepository(session).add_new(node_id, rows)
            for fault in stored:
                text = f"{fault.service}: {fault.text}"[:1000]
                nodes.record(node, now, "fault", text, code=fault.code, service=fault.service, fault_id=fault.id)
        if stored:
            self._tell(connection, node_id, "fault")
        return Reply()

    async def _notify(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """An answer to whoever gave a command: an ERROR ends it as refused, anything else is a remark."""
        node_id = self._signed_in(connection)
        who = clip(argument(arguments, 0), 100)
        text = clip(argument(arguments, 1))
        level = clip(argument(arguments, 2), 20).upper()
        command = connection.commands.get(who)
        if command is None and len(connection.commands) == 1:
            # Commands without arguments do not carry the number of who asked.
            command = next(iter(connection.commands.values()))
        if command is not None:
            command.notices.append(text)
            if level == "ERROR" and not command.answer.done():
                command.answer.set_result({"refused": text})
        self._portal.console_book.append(
            organization_id=connection.organization_id,
            node_id=node_id,
            node=connection.node_name,
            service="agent",
            level="error" if level == "ERROR" else "status",
            text=text,
            time=self._portal.now(),
        )
        return Reply()

    async def _ping_response(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        self._answer(connection, argument(arguments, 3), {"state": clip(argument(arguments, 2), 50)})
        return Reply()

    async def _report_state_response(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        report = read(argument(arguments, 0), dict[str, Any], "report")
        # An original agent sends its whole environment, secrets and all; nobody needs it.
        report.pop("env", None)
        self._answer(connection, argument(arguments, 1), report)
        return Reply()

    def _answer(self, connection: NodeConnection, who: Any, result: dict[str, Any]) -> None:
        self._signed_in(connection)
        command = connection.commands.get(clip(who, 100))
        if command is not None and not command.answer.done():
            command.answer.set_result({"result": result})

    def _signed_in(self, connection: NodeConnection) -> str:
        if connection.node_id is None:
            raise RefusalError("Sign in first.", ERROR_INVALID_REQUEST)
        return connection.node_id

    # --- Commands -----------------------------------------------------------------------------------------------------

    async def command(self, caller: Caller, node_id: str, command: CommandName) -> CommandResult:
        """Send a command and wait for the answer, 10 seconds at most.

        Raises NotFoundError, ConflictError (`node_offline`), NodeSilentError.
        """
        caller.require("operator")
        async with self._portal.database.reading() as session:
            node = await NodeRepository(session).get(caller.organization_id, node_id)
        if node is None:
            raise NotFoundError(f"There is no node {node_id}; it may have been deleted.", code="node_not_found")
        connection = self._nodes.get(node_id)
        if connection is None:
            raise ConflictError(
                f"{node.name} is offline; the command was not sent. Try again when it is back.", code="node_offline"
            )
        started = time.monotonic()
        outcome = await self._carry_out(connection, node.name, command)
        milliseconds = round((time.monotonic() - started) * 1000)
        result = CommandResult(
            command=command,
            outcome=outcome["outcome"],
            text=outcome["text"],
            result=outcome.get("result"),
            milliseconds=milliseconds,
        )
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            stored = await nodes.get(caller.organization_id, node_id)
            if stored is not None:
                text = f"{caller.name} sent {command}: {result.outcome}."
                nodes.record(stored, self._portal.now(), "command", text, command=command, outcome=result.outcome)
        return result

    async def _carry_out(self, connection: NodeConnection, name: str, command: CommandName) -> dict[str, Any]:
        who = secrets.token_hex(8)
        pending = PendingCommand(command, asyncio.get_running_loop().create_future())
        connection.commands[who] = pending
        answered = command in ("ping", "report_state")
        try:
            match command:
                case "ping":
                    connection.send("ping", who)
                case "report_state":
                    connection.send("reportState", who)
                case "restart":
                    connection.send("restart")
                case "restart_com":
                    connection.send("restartCom")
            # A command without an answer may still be refused, and a restart shows in the end of the connection.
            patience = self.limits.command_seconds if command != "restart_com" else self.limits.command_seconds / 10
            async with asyncio.timeout(patience):
                answer = await pending.answer
        except TimeoutError:
            if answered:
                raise NodeSilentError(
                    f"{name} did not answer {command} in {self.limits.command_seconds:.0f} s; it may be busy."
                ) from None
            return {"outcome": "sent", "text": f"{command} was sent to {name}."}
        finally:
            del connection.commands[who]
        if answer is None:
            if answered:
                raise ConflictError(f"{name} went offline before it answered {command}.", code="node_offline")
            return {"outcome": "done", "text": f"{name} ended its connection to carry out {command}."}
        if "refused" in answer:
            return {"outcome": "refused", "text": answer["refused"]}
        return {"outcome": "done", "text": f"{name} answered.", "result": answer["result"]}

    # --- Deployments --------------------------------------------------------------------------------------------------

    def refresh(self, node_ids: Iterable[str]) -> None:
        """Tell these nodes, if they are connected, what is different from what they were told."""
        self._dirty.update(node_id for node_id in node_ids if node_id in self._nodes)
        if self._dirty:
            self._wake.set()

    def refresh_organization(self, organization_id: str) -> None:
        """The same for every connected node of an organisation."""
        self.refresh(
            node_id
            for node_id, connection in list(self._nodes.items())
            if connection.organization_id == organization_id
        )

    async def refresh_forever(self) -> None:
        """Do what `refresh` asked for, until cancelled."""
        while True:
            await self._wake.wait()
            batch = [self._dirty.pop() for _ in range(min(REFRESH_BATCH, len(self._dirty)))]
            if not self._dirty:
                self._wake.clear()
            try:
                await self._refresh(batch)
            except Exception:
                log.exception("Nodes could not be told of a change.", extra={"action": "refresh_failed"})
                # Better told again at their next sign-in than never.
                for node_id in batch:
                    self.disconnect(node_id, "The portal has a fault; connect again.")

    async def _refresh(self, node_ids: Sequence[str]) -> None:
        async with self._portal.database.reading() as session:
            nodes = NodeRepository(session)
            rows = await nodes.by_ids(node_ids)
            tags = await nodes.tags_of([node.id for node in rows])
            organizations = {
                key: await OrganizationRepository(session).get(key) for key in {node.organization_id for node in rows}
            }
        changed: list[tuple[Node, Sequence[Assignment]]] = []
        for node in rows:
            organization = organizations[node.organization_id]
            connection = self._nodes.get(node.id)
            if organization is None or connection is None or connection.told is None:
                continue
            plan = await self._portal.plans.get(node.organization_id)
            assignments = plan.for_node(node.name, tags[node.id])
            services = documents.manifest_services(node.organization_id, assignments)
            told = _told(node, tags[node.id], self._secret(node), documents.deployment_of(services))
            if told.deployment != node.deployment:
                changed.append((node, assignments))
            self._tell_differences(connection, node, organization, tags[node.id], assignments, told)
        if changed:
            await self._store_deployments(changed)

    def _tell_differences(
        self,
        connection: NodeConnection,
        node: Node,
        organization: Organization,
        tags: list[str],
        assignments: Sequence[Assignment],
        told: Told,
    ) -> None:
        before = connection.told
        assert before is not None
        connection.told = told
        connection.node_name = node.name
        assigned = (before.deployment, before.tags, before.iot_hub) != (told.deployment, told.tags, told.iot_hub)
        if before.console != told.console:
            connection.send("changeDebug", told.console)
        if before.tracking != told.tracking:
            connection.send("changeTracking", told.tracking)
        if connection.original:
            if before.enabled != told.enabled:
                connection.send("changeState", documents.state_of(node))
            if assigned:
                connection.send("restart")
        elif assigned or before.enabled != told.enabled:
            connection.send(
                "updateDeployment",
                {
                    "manifest": self._manifest(node, organization, assignments),
                    "iotHub": documents.iot_hub_document(self._secret(node)),
                    "tags": tags,
                    "state": documents.state_of(node),
                    "nodeName": node.name,
                },
            )

    async def _store_deployments(self, changed: Sequence[tuple[Node, Sequence[Assignment]]]) -> None:
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            current = {node.id: node for node in await nodes.by_ids(node.id for node, _ in changed)}
            for node, assignments in changed:
                if (stored := current.get(node.id)) is not None:
                    self._note_deployment(nodes, stored, assignments, now)
        for node, _ in changed:
            self._publish(node, "changed")

    def _publish(self, node: Node, change: str) -> None:
        self._portal.bus.publish(
            nodes_topic(node.organization_id), {"change": change, "node_id": node.id, "node": node.name}
        )

    def _tell(self, connection: NodeConnection, node_id: str, change: str) -> None:
        self._portal.bus.publish(
            nodes_topic(connection.organization_id),
            {"change": change, "node_id": node_id, "node": connection.node_name},
        )


def _told(node: Node, tags: Sequence[str], secret: IotHubSecret | None, deployment: str | None = None) -> Told:
    return Told(
        deployment=node.deployment if deployment is None else deployment,
        tags=tuple(tags),
        enabled=node.enabled,
        iot_hub=None if secret is None else hashlib.sha256(msgspec.json.encode(secret)).digest(),
        console=node.console,
        tracking=node.tracking,
    )


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedArgumentsError("publicKey: not base64") from error
    if len(key) != 32:
        raise MalformedArgumentsError("publicKey: not the 32 bytes of an Ed25519 key")
    return key


def _signature_is_good(connection: NodeConnection, request: SignInRequest, public_key: bytes | None) -> bool:
    if public_key is None:
        return False
    challenge = sign_in_challenge(
        connection_id=connection.connection_id, nonce=connection.nonce, node_name=request.name
    )
    try:
        signature = base64.b64decode(request.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, challenge)
    except (InvalidSignature, ValueError):
        return False
    return True


def _sas_is_good(sas: str | None, sas_hash: str | None) -> bool:
    if not sas or sas_hash is None:
        return False
    return secrets.compare_digest(hash_token(sas), sas_hash)
