"""What can be done with nodes."""

from __future__ import annotations

import builtins
import re
import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from cryptography import x509

from portal.bus import nodes_topic
from portal.errors import ConflictError, InvalidError, NotFoundError
from portal.faults.repository import FaultRepository
from portal.nodes.models import Node, VerificationCode
from portal.nodes.repository import NodeRepository
from portal.nodes.views import (
    NODE_NAME_PATTERN,
    TAG_PATTERN,
    AnnouncementView,
    AssignedServiceView,
    ClaimForm,
    DeploymentState,
    IotHubForm,
    NodeChange,
    NodeCounts,
    NodeDetail,
    NodeEventView,
    NodeKind,
    NodeView,
    ServiceStateView,
    TagView,
    VerificationCodeForm,
    VerificationCodeView,
)
from portal.paging import parse_cursor
from portal.views import Page
from portal.work import Work

if TYPE_CHECKING:
    from portal.vault import Vault

CONSOLE_TIME = timedelta(minutes=30)
FAULTS_WINDOW = timedelta(hours=24)
CODE_PURPOSE = "verification code"
_CODE_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_LENGTH = 10
_IOT_HUB_KEYS = ("HostName", "DeviceId", "SharedAccessKey")


class IotHubSecret(msgspec.Struct):
    """What is stored, encrypted, of a node's way to its IoT Hub."""

    connection_string: str
    certificate_authority: str = ""


class NodeService:
    """Nodes, verification codes and announcements of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._portal = work.portal
        self._nodes = NodeRepository(work.session)

    async def list(
        self,
        *,
        search: str = "",
        tag: str = "",
        status: Literal["", "online", "offline", "disabled"] = "",
        limit: int = 100,
        after: str | None = None,
    ) -> Page[NodeView]:
        """Nodes by name; `search` looks into name, machine name, tags and addresses."""
        nodes = await self._nodes.page(
            self._work.organization_id, search=search, tag=tag, status=status, limit=limit + 1, after=after
        )
        shown = nodes[:limit]
        tags, faults = await self._around(shown)
        return Page(
            items=[NodeView(**self._fields(node, tags[node.id], faults.get(node.id, 0))) for node in shown],
            next=shown[-1].name_key if len(nodes) > limit else None,
        )

    async def fleet(self, *, limit: int) -> builtins.list[NodeView]:
        """The nodes that want to be looked at first: those in trouble, then those that are gone, then by name."""
        nodes = await self._nodes.worst_first(self._work.organization_id, self._faults_since(), limit=limit)
        tags, faults = await self._around(nodes)
        return [NodeView(**self._fields(node, tags[node.id], faults.get(node.id, 0))) for node in nodes]

    async def counts(self) -> NodeCounts:
        """How many nodes are how, counted by the database."""
        organization_id = self._work.organization_id
        nodes, online, disabled, delivering = await self._nodes.counts(organization_id)
        faulty, faults = await FaultRepository(self._work.session).totals(organization_id, self._faults_since())
        return NodeCounts(
            nodes=nodes,
            online=online,
            offline=nodes - online,
            disabled=disabled,
            delivering=delivering,
            faulty=faulty,
            faults=faults,
        )

    async def get(self, node_id: str) -> NodeDetail:
        """One node. Raises NotFoundError."""
        return await self._detail(await self._get(node_id))

    async def create_verification_code(self, form: VerificationCodeForm) -> VerificationCodeView:
        """Make a one-time code and the command that uses it.

        Raises ConflictError (`node_name_taken`), InvalidError (`node_name_invalid`, `tag_invalid`).
        """
        self._work.caller.require("operator")
        check_tags(form.tags)
        if form.name:
            check_name(form.name)
            if await self._nodes.by_name(self._work.organization_id, form.name) is not None:
                raise name_taken(form.name)
        code = "".join(secrets.choice(_CODE_ALPHABET) for _ in range(_CODE_LENGTH))
        now = self._portal.now()
        expires_at = now + timedelta(minutes=form.minutes)
        self._nodes.add(
            VerificationCode(
                code_hash=hash_code(self._portal.vault, code),
                organization_id=self._work.organization_id,
                node_name=form.name,
                tags=form.tags,
                created_by=self._work.caller.name,
                created_at=now,
                expires_at=expires_at,
                used_at=None,
            )
        )
        shown = f"{code[:5]}-{code[5:]}"
        return VerificationCodeView(
            code=shown,
            expires_at=expires_at,
            command=self._portal.enrol_command(shown),
            portal_url=self._portal.url,
            fingerprint=self._portal.fingerprint,
        )

    async def change(self, node_id: str, change: NodeChange) -> NodeDetail:
        """Change a node; it is told once the change is stored.

        Raises NotFoundError, ConflictError (`node_name_taken`, `node_name_fixed`), InvalidError (`tag_invalid`).
        """
        self._work.caller.require("operator")
        node = await self._get(node_id)
        changed: builtins.list[str] = []
        if change.name is not None and change.name != node.name:
            await self._rename(node, change.name)
            changed.append("name")
        if change.tags is not None:
            check_tags(change.tags)
            await self._nodes.set_tags(node.id, change.tags)
            changed.append("tags")
        if change.enabled is not None and change.enabled != node.enabled:
            node.enabled = change.enabled
            changed.append("enabled" if change.enabled else "disabled")
        if change.tracking is not None and change.tracking != node.tracking:
            node.tracking = change.tracking
            changed.append("tracking on" if change.tracking else "tracking off")
        if change.console is not None:
            if change.console != node.console:
                changed.append("console on" if change.console else "console off")
            node.console = change.console
            node.console_until = self._portal.now() + CONSOLE_TIME if change.console else None
        if changed:
            text = f"{self._work.caller.name} changed: {', '.join(changed)}."
            self._nodes.record(node, self._portal.now(), "changed", text)
            self._tell(node, "changed")
            await self._work.session.flush()
        return await self._detail(node)

    async def delete(self, node_id: str) -> None:
        """Forget a node and end its connection; it must enrol again. For owners. Raises NotFoundError."""
        self._work.caller.require("owner")
        node = await self._get(node_id)
        await self._nodes.delete(node)
        self._publish(node, "deleted")
        self._work.after_commit(lambda: self._portal.hub.disconnect(node.id, "The node was deleted in the portal."))

    async def set_iot_hub(self, node_id: str, form: IotHubForm) -> NodeDetail:
        """Store how the node reaches its IoT Hub.

        Raises InvalidError (`connection_string_invalid`, `certificate_authority_invalid`).
        """
        self._work.caller.require("operator")
        node = await self._get(node_id)
        connection_string = form.connection_string.get_secret_value().strip()
        parts = _parse_connection_string(connection_string)
        _check_certificate_authority(form.certificate_authority)
        secret = IotHubSecret(connection_string, form.certificate_authority)
        node.iot_hub = self._portal.vault.encrypt(msgspec.json.encode(secret))
        node.iot_hub_address = f"{parts['DeviceId']}@{parts['HostName']}"[:300]
        text = f"{self._work.caller.name} set the IoT Hub to {node.iot_hub_address}."
        self._nodes.record(node, self._portal.now(), "changed", text)
        self._tell(node, "changed")
        return await self._detail(node)

    async def clear_iot_hub(self, node_id: str) -> NodeDetail:
        """Forget how the node reaches its IoT Hub."""
        self._work.caller.require("operator")
        node = await self._get(node_id)
        if node.iot_hub is not None:
            node.iot_hub = None
            node.iot_hub_address = None
            text = f"{self._work.caller.name} removed the IoT Hub."
            self._nodes.record(node, self._portal.now(), "changed", text)
            self._tell(node, "changed")
        return await self._detail(node)

    async def events(self, node_id: str, *, limit: int = 100, after: str | None = None) -> Page[NodeEventView]:
        """The node's timeline, newest first."""
        node = await self._get(node_id)
        events = await self._nodes.events(node.id, limit=limit + 1, before=parse_cursor(after))
        shown = events[:limit]
        return Page(
            items=[
                NodeEventView(id=event.id, at=event.at, kind=event.kind, text=event.text, detail=event.detail)
                for event in shown
            ],
            next=str(shown[-1].id) if len(events) > limit else None,
        )

    async def tags(self) -> builtins.list[TagView]:
        """All tags in use."""
        counts = await self._nodes.tag_counts(self._work.organization_id)
        return [TagView(tag=tag, nodes=count) for tag, count in counts]

    async def announcements(self) -> builtins.list[AnnouncementView]:
        """Machines that wait to be claimed, newest first."""
        return [
            AnnouncementView(
                id=row.id,
                host_name=row.host_name,
                ip_address=row.ip_address,
                mac_addresses=row.mac_addresses,
                imei=row.imei,
                kind="original" if row.public_key is None else "outstation",
                announced_at=row.announced_at,
                connected=self._portal.hub.announced(row.id),
            )
            for row in await self._nodes.announcements(self._work.organization_id)
        ]

    async def claim(self, announcement_id: str, form: ClaimForm) -> NodeDetail:
        """Take an announced machine in.

        Raises NotFoundError, ConflictError (`node_offline`, `original_agents_not_allowed`, `node_name_taken`),
        InvalidError (`node_name_invalid`, `tag_invalid`).
        """
        self._work.caller.require("operator")
        check_tags(form.tags)
        announcement = await self._nodes.announcement(self._work.organization_id, announcement_id)
        if announcement is None:
            raise NotFoundError(f"There is no announcement {announcement_id}.", code="announcement_not_found")
        node = await self._portal.hub.claim(self._work, announcement, name=form.name, tags=form.tags)
        await self._nodes.delete(announcement)
        return await self._detail(node)

    async def dismiss(self, announcement_id: str) -> None:
        """Forget an announcement. Raises NotFoundError."""
        self._work.caller.require("operator")
        announcement = await self._nodes.announcement(self._work.organization_id, announcement_id)
        if announcement is None:
            raise NotFoundError(f"There is no announcement {announcement_id}.", code="announcement_not_found")
        await self._nodes.delete(announcement)
        self._work.after_commit(lambda: self._portal.hub.dismiss(announcement_id))

    async def _get(self, node_id: str) -> Node:
        node = await self._nodes.get(self._work.organization_id, node_id)
        if node is None:
            raise NotFoundError(f"There is no node {node_id}; it may have been deleted.", code="node_not_found")
        return node

    async def _rename(self, node: Node, name: str) -> None:
        check_name(name)
        if node.kind == "original":
            raise ConflictError(
                f"{node.name} runs an original agent, which signs in by its name; enrol it anew to rename it.",
                code="node_name_fixed",
            )
        other = await self._nodes.by_name(self._work.organization_id, name)
        if other is not None and other.id != node.id:
            raise name_taken(name)
        node.name = name
        node.name_key = name.casefold()

    def _tell(self, node: Node, change: str) -> None:
        self._publish(node, change)
        self._work.after_commit(lambda: self._portal.hub.refresh([node.id]))

    def _publish(self, node: Node, change: str) -> None:
        topic = nodes_topic(node.organization_id)
        data = {"change": change, "node_id": node.id, "node": node.name}
        self._work.after_commit(lambda: self._portal.bus.publish(topic, data))

    async def _around(self, nodes: Sequence[Node]) -> tuple[dict[str, builtins.list[str]], dict[str, int]]:
        ids = [node.id for node in nodes]
        counts = await FaultRepository(self._work.session).counts(ids, self._faults_since())
        return await self._nodes.tags_of(ids), counts

    def _faults_since(self) -> datetime:
        return self._portal.now() - FAULTS_WINDOW

    def _fields(self, node: Node, tags: builtins.list[str], faults: int) -> dict[str, Any]:
        return {
            "id": node.id,
            "name": node.name,
            "kind": cast("NodeKind", node.kind),
            "tags": tags,
            "online": node.online,
            "presence_since": node.presence_since,
            "last_seen_at": self._portal.hub.last_seen_at(node.id) or node.last_seen_at,
            "enabled": node.enabled,
            "console": node.console,
            "console_until": node.console_until,
            "tracking": node.tracking,
            "agent_version": node.agent_version,
            "platform": node.platform,
            "machine_name": node.machine_name,
            "deployment_state": cast("DeploymentState", node.deployment_state),
            "faults": faults,
            "iot_hub": node.iot_hub_address,
            "created_at": node.created_at,
        }

    async def _detail(self, node: Node) -> NodeDetail:
        tags, faults = await self._around([node])
        plan = await self._portal.plans.get(node.organization_id)
        assigned = plan.for_node(node.name, tags[node.id])
        return NodeDetail(
            **self._fields(node, tags[node.id], faults.get(node.id, 0)),
            ip_addresses=node.ip_addresses,
            mac_addresses=node.mac_addresses,
            facts=node.facts,
            facts_at=node.facts_at,
            deployment=node.deployment,
            reported_deployment=node.reported_deployment,
            deployment_error=node.deployment_error,
            assigned=[
                AssignedServiceView(
                    id=item.service_id,
                    file=item.file,
                    version=item.version,
                    sha256=item.sha256,
                    flow=item.flow,
                    host=item.host,
                    enabled=item.enabled,
                    overrides=list(item.overrides),
                )
                for item in assigned
            ],
            services=[
                ServiceStateView(
                    id=row.service_id,
                    version=row.version,
                    state=row.state,
                    pid=row.pid,
                    fault=row.fault,
                    since=row.since,
                )
                for row in await self._nodes.services_of(node.id)
            ],
        )


def new_node(
    *, organization_id: str, name: str, kind: NodeKind, now: datetime, public_key: bytes | None, sas_hash: str | None
) -> Node:
    """A node that has never signed in."""
    return Node(
        id=str(uuid.uuid4()),
        organization_id=organization_id,
        name=name,
        name_key=name.casefold(),
        kind=kind,
        public_key=public_key,
        sas_hash=sas_hash,
        enabled=True,
        tracking=False,
        console=False,
        created_at=now,
        online=False,
        machine_name="",
        agent_version="",
        platform="",
        ip_addresses=[],
        mac_addresses=[],
        facts={},
        deployment="",
        reported_deployment="",
        deployment_state="unknown",
        deployment_error="",
    )


async def free_name(nodes: NodeRepository, organization_id: str, prefix: str) -> str:
    """A valid name that nobody has, made from a machine's own name."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).strip("._-")[:55] or "node"
    taken = await nodes.name_keys_like(organization_id, base.casefold())
    if base.casefold() not in taken:
        return base
    number = 2
    while f"{base}-{number}".casefold() in taken:
        number += 1
    return f"{base}-{number}"


def hash_code(vault: Vault, code: str) -> str:
    """What is stored of a verification code; how people write it down does not matter."""
    return vault.keyed_hash(CODE_PURPOSE, re.sub(r"[\s-]", "", code).upper())


def check_name(name: str) -> None:
    """Raise InvalidError (`node_name_invalid`) for what cannot be a node's name."""
    if not re.fullmatch(NODE_NAME_PATTERN, name):
        raise InvalidError(
            f"{name[:80]!r} cannot be a node's name: use 1 to 63 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit.",
            code="node_name_invalid",
            field="name",
        )


def check_tags(tags: Sequence[str]) -> None:
    """Raise InvalidError (`tag_invalid`) for what cannot be a tag."""
    for tag in tags:
        if not re.fullmatch(TAG_PATTERN, tag) or tag.casefold() == "all":
            raise InvalidError(
                f"{tag[:80]!r} cannot be a tag: use 1 to 64 characters without spaces and commas, no # in front, "
                "and not ALL.",
                code="tag_invalid",
                field="tags",
            )


def name_taken(name: str) -> ConflictError:
    """The error for a name that another node has."""
    return ConflictError(
        f"Another node has the name {name}; choose another name.", code="node_name_taken", field="name"
    )


def _parse_connection_string(text: str) -> dict[str, str]:
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    missing = [key for key in _IOT_HUB_KEYS if not parts.get(key)]
    if missing:
        raise InvalidError(
            f"The connection string lacks {', '.join(missing)}; it must look like "
            "HostName=…;DeviceId=…;SharedAccessKey=….",
            code="connection_string_invalid",
            field="connection_string",
        )
    return parts


def _check_certificate_authority(pem: str) -> None:
    if not pem:
        return
    try:
        x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise InvalidError(
            "The certificate authority is not a PEM certificate; paste the whole file, its BEGIN and END lines too.",
            code="certificate_authority_invalid",
            field="certificate_authority",
        ) from error
