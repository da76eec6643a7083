"""Which services which node runs: all flows of an organisation, looked at from a node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from agent.hub.protocol import Property, ServiceConfig
from portal.flows.models import Flow, FlowActivity
from portal.flows.repository import FlowRepository
from portal.services.models import Service
from portal.services.repository import ServiceRepository, VersionRow
from portal.services.views import PropertyDefinition, PropertyDefinitions

if TYPE_CHECKING:
    from portal.database import Database
    from portal.vault import Vault

ALL = "all"
_Ordered = tuple[int, "Assignment"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A service that a node is to run, and why."""

    service_id: str
    file: str
    version: str
    pinned: bool
    """Whether the flow names this version; otherwise it is the newest one."""
    sha256: str
    requirements: tuple[str, ...]
    flow_id: str
    flow: str
    activity_id: str
    host: str
    enabled: bool
    config: ServiceConfig
    overrides: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> tuple[str, str, bool, bytes]:
        """Differs when the node would have to restart the service."""
        return self.version, self.sha256, self.enabled, msgspec.json.encode(self.config)


def host_key(host: str) -> str:
    """`#Pumps`, `pumps` → `pumps`; `#ALL` → `all`."""
    return host.removeprefix("#").casefold()


class Plan:
    """All enabled flows, ready to be asked for any node.

    A service runs once on a node. When several activities assign it, the most specific host counts (the node's name
    before a tag before `#ALL`), then the older flow; the others are named in `overrides`.
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        # By how specifically the host names a node, so that asking for one of ten thousand nodes looks at its own
        # services only. A plain host may be a node's name or a tag; one with # is a tag or #ALL.
        self._by_name: dict[str, list[_Ordered]] = {}
        self._by_tag: dict[str, list[_Ordered]] = {}
        self._everywhere: list[_Ordered] = []
        for order, assignment in enumerate(assignments):
            key = host_key(assignment.host)
            if not assignment.host.startswith("#"):
                self._by_name.setdefault(key, []).append((order, assignment))
            elif key == ALL:
                self._everywhere.append((order, assignment))
                continue
            self._by_tag.setdefault(key, []).append((order, assignment))

    def for_node(self, name: str, tags: Iterable[str]) -> list[Assignment]:
        """What a node of this name and these tags is to run, by service id."""
        matching: dict[str, dict[str, Assignment]] = {}
        tagged = [item for tag in {tag.casefold() for tag in tags} for item in self._by_tag.get(tag, ())]
        for items in (self._by_name.get(name.casefold(), ()), tagged, self._everywhere):
            for _, assignment in sorted(items, key=itemgetter(0)):
                matching.setdefault(assignment.service_id, {}).setdefault(assignment.activity_id, assignment)
        chosen: list[Assignment] = []
        for service_id in sorted(matching):
            first, *others = matching[service_id].values()
            chosen.append(replace(first, overrides=tuple(other.flow for other in others)))
        return chosen


class PlanBuilder:
    """Makes plans of an organisation's flows as they are, or as they would be."""

    def __init__(self, services: Sequence[Service], versions: Sequence[VersionRow], vault: Vault) -> None:
        self._definitions = {service.id: PropertyDefinitions.model_validate(service.properties) for service in services}
        self._versions = {(row.service_id, f"{row.major}.{row.minor}"): row for row in versions}
        # The rows come oldest first, so that the last one of a service stays.
        self._latest = {row.service_id: row for row in versions}
        self._vault = vault

    @classmethod
    async def load(cls, session: AsyncSession, organization_id: str, vault: Vault) -> PlanBuilder:
        """Read what plans are made of, without the scripts' texts."""
        repository = ServiceRepository(session)
        return cls(await repository.all(organization_id), await repository.version_rows(organization_id), vault)

    def resolve(self, service_id: str, version: str) -> VersionRow | None:
        """What a version, or `latest`, means now."""
        return self._latest.get(service_id) if version == "latest" else self._versions.get((service_id, version))

    def plan(self, flows: Iterable[Flow]) -> Plan:
        """The plan of these flows; disabled ones count for nothing."""
        return Plan(
            [
                assignment
                for flow in flows
                if flow.enabled
                for activity in flow.activities
                if (assignment := self._assignment(flow, activity)) is not None
            ]
        )

    def _assignment(self, flow: Flow, activity: FlowActivity) -> Assignment | None:
        row = self.resolve(activity.service_id, activity.version)
        definitions = self._definitions.get(activity.service_id)
        if row is None or definitions is None:
            return None
        secrets = decode_security(self._vault, activity.security)
        return Assignment(
            service_id=row.service_id,
            file=row.file,
            version=f"{row.major}.{row.minor}",
            pinned=activity.version != "latest",
            sha256=row.sha256,
            requirements=tuple(row.requirements),
            flow_id=flow.id,
            flow=flow.name,
            activity_id=activity.id,
            host=activity.host,
            enabled=activity.enabled,
            config=ServiceConfig(
                general_config=[
                    Property("name", flow.name),
                    Property("host", activity.host),
                    Property("enabled", activity.enabled, "boolean"),
                ],
                static_config=_values(definitions.static, activity.static),
                security_config=_values(definitions.security, secrets),
            ),
        )


def decode_security(vault: Vault, stored: bytes | None) -> dict[str, Any]:
    """The security values of an activity."""
    return {} if stored is None else msgspec.json.decode(vault.decrypt(stored), type=dict[str, Any])


def encode_security(vault: Vault, values: dict[str, Any]) -> bytes | None:
    """Encrypt the security values of an activity."""
    return vault.encrypt(msgspec.json.encode(values)) if values else None


def _values(definitions: Sequence[PropertyDefinition], values: dict[str, Any]) -> list[Property]:
    found: list[Property] = []
    for definition in definitions:
        value = values.get(definition.id, definition.default)
        if value is not None:
            found.append(Property(definition.id, value, "string" if definition.type == "select" else definition.type))
    return found


class Plans:
    """Keeps each organisation's plan until something that it is made of changes. On the loop only."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._generation = 0
        self._plans: dict[str, Plan] = {}

    @property
    def generation(self) -> int:
        """Rises with each change."""
        return self._generation

    def changed(self) -> None:
        """Forget what was planned; called after the commit of the change."""
        self._generation += 1
        self._plans.clear()

    async def get(self, organization_id: str) -> Plan:
        """The plan of what is stored."""
        plan = self._plans.get(organization_id)
        if plan is None:
            generation = self._generation
            # A transaction of its own: the caller's may have begun before the last change, and would leave an
            # outdated plan behind for everybody.
            async with self._database.reading() as session:
                builder = await PlanBuilder.load(session, organization_id, self._vault)
                plan = builder.plan(await FlowRepository(session).all(organization_id))
            if generation == self._generation:
                self._plans[organization_id] = plan
        return plan
