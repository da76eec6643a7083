"""Signing in and out, and whether a node is there."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.hub.protocol import (
    ERROR_INVALID_REQUEST,
    ERROR_NODE_LOCKED,
    ERROR_NODE_NOT_FOUND,
    ERROR_SECRET_NOT_VALID,
    Invocation,
    sign_in_challenge,
)
from portal.flows.plan import Assignment
from portal.hub import documents
from portal.hub.connection import NodeConnection, Reply
from portal.hub.deployments import Deployments, told
from portal.hub.records import SignInRequest, argument, clip, read
from portal.hub.refusal import RefusalError, node_of, organization_of
from portal.hub.registry import Registry
from portal.nodes.models import Node
from portal.nodes.repository import NodeRepository
from portal.organizations.models import Organization
from portal.vault import hash_token

if TYPE_CHECKING:
    from portal.portal import Portal


class Presence:
    """Signs nodes in and out."""

    def __init__(self, portal: Portal, registry: Registry, deployments: Deployments) -> None:
        self._portal = portal
        self._registry = registry
        self._deployments = deployments

    async def sign_in(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`signInAsync`: check who it is, answer with settings and what to run."""
        request = read(argument(arguments, 0), SignInRequest, "host")
        node_id = await self._identify(connection, request)
        if connection.node_id not in (None, node_id):
            raise RefusalError("Another node is signed in on this connection; open another one.", ERROR_INVALID_REQUEST)
        generation = self._portal.plans.generation
        now = self._portal.now()
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            node = await nodes.get_for_change(request.organization_id, node_id)
            if node is None:
                raise RefusalError("This node was deleted in the portal.", ERROR_NODE_NOT_FOUND)
            organization = await organization_of(work.session, node.organization_id)
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
            self._deployments.note_deployment(nodes, node, assignments, now)
            token = secrets.token_urlsafe(32)
            document = self._settings_for(node, organization, tags, assignments, request, token)
            # Before the commit: whoever ends the connection from here on finds it, and notes that the node is gone.
            self._registry.enter(
                connection, node, told(node, organization, tags, self._deployments.secret(node)), token
            )
            work.after_commit(lambda: self._registry.publish(organization.id, "online", node.id, node.name))
        # What changed while this transaction was under way was not in its answer.
        if generation != self._portal.plans.generation:
            self._deployments.refresh([node.id])
        return Reply(then=(Invocation("signInMessage", [document]),))

    async def sign_out(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`signOut`: the node goes on purpose."""
        node_of(connection)
        node_id = self._registry.leave(connection)
        if node_id is not None:
            await self.gone_offline(connection, node_id, "Signed out.")
        return Reply()

    async def gone_offline(self, connection: NodeConnection, node_id: str, text: str = "The connection ended.") -> None:
        """Store that a node is not there any more."""
        now = self._portal.now()
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            node = await nodes.get_for_change(connection.organization_id, node_id)
            # Deleted, or back already on another connection: then it is not offline.
            if node is None or not node.online or self._registry.connection_of(node_id) is not None:
                return
            node.online = False
            node.presence_since = now
            node.last_seen_at = now
            nodes.record(node, now, "offline", text)
            work.after_commit(lambda: self._registry.publish(node.organization_id, "offline", node.id, node.name))

    async def nobody_is_online(self, text: str) -> None:
        """Store that every node is offline: at start, because the last run may have been killed, and at the end."""
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            for node in await nodes.online_nodes():
                node.online = False
                node.presence_since = now
                nodes.record(node, now, "offline", text)

    async def _identify(self, connection: NodeConnection, request: SignInRequest) -> str:
        """The id of the node that proves who it is, read without holding up who writes."""
        async with self._portal.database.reading() as session:
            organization = await organization_of(session, request.organization_id)
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
            "manifest": self._deployments.manifest(node, organization, assignments),
            "scriptToken": token,
            "iotHub": documents.iot_hub_document(self._deployments.secret(node)),
        }


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
