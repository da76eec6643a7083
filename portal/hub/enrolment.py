"""How a machine becomes a node: with a verification code, or announced and claimed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.hub.protocol import (
    ERROR_INVALID_CODE,
    ERROR_INVALID_REQUEST,
    NAME_TAKEN_REASON,
    Invocation,
)
from portal.errors import ConflictError, InvalidError
from portal.hub import documents
from portal.hub.connection import NodeConnection, Reply
from portal.hub.records import AnnounceRequest, CreateNodeFacts, MalformedArgumentsError, argument, clip, read
from portal.hub.refusal import RefusalError, organization_of
from portal.hub.registry import Registry
from portal.nodes.models import Announcement, Node
from portal.nodes.repository import NodeRepository
from portal.nodes.service import check_name, check_tags, free_name, hash_code, name_taken, new_node
from portal.organizations.models import Organization
from portal.people.throttle import Throttle, network_of
from portal.vault import hash_token
from portal.work import Work

if TYPE_CHECKING:
    from portal.portal import Portal

ERROR_NOT_ON_WHITE_LIST = 3
"""The original's code for a hardware address that is not on the white-list."""


class Enrolment:
    """Makes nodes."""

    def __init__(self, portal: Portal, registry: Registry) -> None:
        self._portal = portal
        self._registry = registry
        self._codes = Throttle(portal.clock)

    async def create_node(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`createNode`: a verification code against a node; a refusal leaves the code good."""
        code = read(argument(arguments, 0), str, "code")
        prefix = clip(argument(arguments, 1), 255)
        name = clip(argument(arguments, 2), 255)
        facts = read(arguments[3], CreateNodeFacts, "facts") if len(arguments) > 3 else None
        public_key = _public_key(facts.public_key) if facts is not None else None
        attempt = ("code", network_of(connection.address))
        self._codes.check(*attempt)
        now = self._portal.now()
        sas = None if facts is not None else secrets.token_urlsafe(32)
        async with self._portal.writing(None) as work:
            nodes = NodeRepository(work.session)
            row = await nodes.code(hash_code(self._portal.vault, code))
            if row is None or row.used_at is not None or row.expires_at <= now:
                self._codes.failed(*attempt)
                raise RefusalError(
                    "The verification code is not valid: it is wrong, used, or older than it may be. "
                    "Make a new one in the portal under Nodes.",
                    ERROR_INVALID_CODE,
                )
            organization = await organization_of(work.session, row.organization_id)
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
        self._codes.succeeded(*attempt)
        return Reply(then=(Invocation("nodeCreated", [document]),))

    async def create_node_from_mac_address(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`createNodeFromMacAddress`: the white-list is empty, so nobody is on it."""
        raise RefusalError(
            "None of the machine's hardware addresses is on the white-list; enrol it with a verification code.",
            ERROR_NOT_ON_WHITE_LIST,
        )

    async def announce(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`assertNode`: remember the machine until somebody claims it."""
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
                if await nodes.announcement_count(organization_id) >= self._registry.limits.announcements:
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
        self._registry.enter_announced(connection, announcement_id)
        self._registry.publish(organization_id, "announced", announcement_id, host_name)
        return Reply()

    async def claim(self, work: Work, announcement: Announcement, *, name: str, tags: Sequence[str]) -> Node:
        """Make a node of an announced machine and tell it once that is stored.

        Raises ConflictError (`node_offline`, `original_agents_not_allowed`, `node_name_taken`), InvalidError.
        """
        connection = self._registry.announced(announcement.id)
        if connection is None:
            raise ConflictError(
                f"{announcement.host_name} is not connected; it can be claimed when it announces itself again.",
                code="node_offline",
            )
        organization = await organization_of(work.session, announcement.organization_id)
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
            self._registry.leave_announced(announcement.id)
            connection.send("nodeCreated", document)

        work.after_commit(tell)
        return node

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
        work.after_commit(lambda: self._registry.publish(organization.id, "enrolled", node.id, node.name))
        return node

    def _check_original(self, organization: Organization, *, original: bool) -> None:
        if original and not organization.allow_original_agents:
            raise RefusalError(
                "This organisation does not take agents of the original product; an owner can allow them in the "
                "settings.",
                ERROR_INVALID_REQUEST,
                "original_agents_not_allowed",
            )


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedArgumentsError("publicKey: not base64") from error
    if len(key) != 32:
        raise MalformedArgumentsError("publicKey: not the 32 bytes of an Ed25519 key")
    return key
