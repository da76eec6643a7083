"""What nodes are to run: put into their sign-in, and pushed when it changes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from portal.flows.plan import Assignment
from portal.hub import documents
from portal.hub.connection import NodeConnection, Told
from portal.hub.registry import Registry
from portal.nodes.models import Node
from portal.nodes.repository import NodeRepository
from portal.nodes.service import IotHubSecret
from portal.organizations.models import Organization
from portal.organizations.repository import OrganizationRepository

if TYPE_CHECKING:
    from portal.portal import Portal

log = logging.getLogger(__name__)

REFRESH_BATCH = 200


class Deployments:
    """Keeps connected nodes told."""

    def __init__(self, portal: Portal, registry: Registry) -> None:
        self._portal = portal
        self._registry = registry
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()

    def refresh(self, node_ids: Iterable[str]) -> None:
        """Tell these nodes, if they are connected, what is different from what they were told."""
        self._dirty |= self._registry.connected(node_ids)
        if self._dirty:
            self._wake.set()

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
                    if (connection := self._registry.connection_of(node_id)) is not None:
                        connection.close("The portal has a fault; connect again.")

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
            connection = self._registry.connection_of(node.id)
            if organization is None or connection is None or connection.told is None:
                continue
            plan = await self._portal.plans.get(node.organization_id)
            assignments = plan.for_node(node.name, tags[node.id])
            services = documents.manifest_services(node.organization_id, assignments)
            now = told(node, organization, tags[node.id], self.secret(node), documents.deployment_of(services))
            if now.deployment != node.deployment:
                changed.append((node, assignments))
            self._tell_differences(connection, node, organization, tags[node.id], assignments, now)
        if changed:
            await self._store_deployments(changed)

    def _tell_differences(
        self,
        connection: NodeConnection,
        node: Node,
        organization: Organization,
        tags: list[str],
        assignments: Sequence[Assignment],
        now: Told,
    ) -> None:
        before = connection.told
        assert before is not None
        connection.told = now
        connection.node_name = node.name
        assigned = (before.deployment, before.tags, before.iot_hub) != (now.deployment, now.tags, now.iot_hub)
        if before.console != now.console:
            connection.send("changeDebug", now.console)
        if before.tracking != now.tracking:
            connection.send("changeTracking", now.tracking)
        if connection.original:
            if before.enabled != now.enabled:
                connection.send("changeState", documents.state_of(node))
            if assigned:
                connection.send("restart")
        elif assigned or (before.enabled, before.heartbeat) != (now.enabled, now.heartbeat):
            connection.send(
                "updateDeployment",
                {
                    "manifest": self.manifest(node, organization, assignments),
                    "iotHub": documents.iot_hub_document(self.secret(node)),
                    "tags": tags,
                    "state": documents.state_of(node),
                    "nodeName": node.name,
                    "policies": documents.policies_document(organization),
                },
            )

    async def _store_deployments(self, changed: Sequence[tuple[Node, Sequence[Assignment]]]) -> None:
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            current = {node.id: node for node in await nodes.by_ids(node.id for node, _ in changed)}
            for node, assignments in changed:
                if (stored := current.get(node.id)) is not None:
                    self.note_deployment(nodes, stored, assignments, now)
        for node, _ in changed:
            self._registry.publish(node.organization_id, "changed", node.id, node.name)

    def manifest(self, node: Node, organization: Organization, assignments: Sequence[Assignment]) -> dict[str, str]:
        """What a node is to run, signed."""
        return documents.sign_manifest(
            self._portal.vault.decrypt(organization.signing_key),
            node_id=node.id,
            organization_id=organization.id,
            services=documents.manifest_services(organization.id, assignments),
        )

    def secret(self, node: Node) -> IotHubSecret | None:
        """How a node reaches its IoT Hub."""
        if node.iot_hub is None:
            return None
        return msgspec.json.decode(self._portal.vault.decrypt(node.iot_hub), type=IotHubSecret)

    def note_deployment(
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


def told(
    node: Node,
    organization: Organization,
    tags: Sequence[str],
    secret: IotHubSecret | None,
    deployment: str | None = None,
) -> Told:
    """What a node knows once it was told all of this."""
    return Told(
        deployment=node.deployment if deployment is None else deployment,
        tags=tuple(tags),
        enabled=node.enabled,
        iot_hub=None if secret is None else hashlib.sha256(msgspec.json.encode(secret)).digest(),
        console=node.console,
        tracking=node.tracking,
        heartbeat=(organization.heartbeat_seconds, organization.missed_heartbeat_limit),
    )
