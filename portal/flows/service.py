"""What can be done with flows."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from portal.bus import catalog_topic
from portal.errors import ConflictError, InvalidError, NotFoundError
from portal.flows.models import Flow, FlowActivity
from portal.flows.plan import Plan, PlanBuilder, decode_security, encode_security
from portal.flows.repository import FlowRepository
from portal.flows.views import MASK, ActivityForm, ActivityView, FlowForm, FlowImpact, FlowView
from portal.nodes.repository import NodeRepository
from portal.services.models import Service
from portal.services.repository import ServiceRepository
from portal.services.views import PropertyDefinition, PropertyDefinitions
from portal.views import Page
from portal.work import Work

VALUES_LIMIT_BYTES = 256 * 1024
"""Of all properties in a flow: nodes get them in one record of the node hub, which has a limit."""
_NUMBER_LIMIT = 1e300
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class FlowService:
    """The organisation's flows."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._flows = FlowRepository(work.session)
        self._services = ServiceRepository(work.session)
        self._nodes = NodeRepository(work.session)

    async def list(self, *, search: str = "", limit: int = 100, after: str | None = None) -> Page[FlowView]:
        """Flows by name."""
        flows = await self._flows.page(self._work.organization_id, search=search, limit=limit + 1, after=after)
        shown = flows[:limit]
        return Page(items=await self._views(shown), next=shown[-1].name_key if len(flows) > limit else None)

    async def count(self) -> int:
        """How many flows there are."""
        return await self._flows.count(self._work.organization_id)

    async def runs_somewhere(self) -> bool:
        """Whether some flow runs a service on some node."""
        organization_id = self._work.organization_id
        plan = await self._work.portal.plans.get(organization_id)
        tags = await self._nodes.tags_of_all(organization_id)
        return any(
            item.enabled
            for node_id, name, _ in await self._nodes.names(organization_id)
            for item in plan.for_node(name, tags.get(node_id, ()))
        )

    async def get(self, flow_id: str) -> FlowView:
        """One flow. Raises NotFoundError."""
        return (await self._views([await self._get(flow_id)]))[0]

    async def create(self, form: FlowForm) -> FlowView:
        """Make a flow.

        Raises ConflictError (`flow_name_taken`), InvalidError (`service_not_found`, `version_not_found`,
        `property_unknown`, `property_invalid`, `property_missing`, `values_too_large`, `activity_not_found`) naming
        the field.
        """
        self._work.caller.require("operator")
        await self._check_name(form.name, None)
        now = self._work.portal.now()
        flow = Flow(
            id=str(uuid.uuid4()),
            organization_id=self._work.organization_id,
            name=form.name,
            name_key=form.name.casefold(),
            description=form.description,
            enabled=form.enabled,
            created_at=now,
            updated_at=now,
            updated_by=self._work.caller.name,
        )
        flow.activities = await self._activities(form.activities, {})
        self._flows.add(flow)
        await self._work.session.flush()
        self._changed(flow.id)
        return (await self._views([flow]))[0]

    async def change(self, flow_id: str, form: FlowForm) -> FlowView:
        """Replace a flow; masked security values keep what is stored. Raises as `create`, and NotFoundError."""
        self._work.caller.require("operator")
        flow = await self._get(flow_id)
        await self._check_name(form.name, flow)
        activities = await self._activities(form.activities, {activity.id: activity for activity in flow.activities})
        flow.name = form.name
        flow.name_key = form.name.casefold()
        flow.description = form.description
        flow.enabled = form.enabled
        flow.activities = activities
        self._touch(flow)
        await self._work.session.flush()
        return (await self._views([flow]))[0]

    async def set_enabled(self, flow_id: str, enabled: bool) -> FlowView:
        """Switch a flow on or off. Raises NotFoundError."""
        self._work.caller.require("operator")
        flow = await self._get(flow_id)
        flow.enabled = enabled
        self._touch(flow)
        await self._work.session.flush()
        return (await self._views([flow]))[0]

    async def delete(self, flow_id: str) -> None:
        """Forget a flow; what it alone assigned stops. Raises NotFoundError."""
        self._work.caller.require("operator")
        flow = await self._get(flow_id)
        await self._flows.delete(flow)
        self._changed(flow_id)

    async def impact(self, form: FlowForm, flow_id: str | None = None) -> builtins.list[FlowImpact]:
        """Which nodes saving this form would change, without saving it. Raises as `create`."""
        organization_id = self._work.organization_id
        flows = builtins.list(await self._flows.all(organization_id))
        old = await self._get(flow_id) if flow_id is not None else None
        stored = {activity.id: activity for activity in old.activities} if old is not None else {}
        with self._work.session.no_autoflush:
            draft = Flow(
                id=flow_id or "draft",
                organization_id=organization_id,
                name=form.name,
                enabled=form.enabled,
                activities=await self._drafts(form.activities, stored),
            )
            builder = await self._builder()
            before = builder.plan(flows)
            after = builder.plan([draft if flow is old else flow for flow in flows] + ([] if old else [draft]))
            return await self._compare(before, after)

    async def _compare(self, before: Plan, after: Plan) -> builtins.list[FlowImpact]:
        tags = await self._nodes.tags_of_all(self._work.organization_id)
        found: builtins.list[FlowImpact] = []
        for node_id, name, online in await self._nodes.names(self._work.organization_id):
            old = {item.service_id: item for item in before.for_node(name, tags.get(node_id, ()))}
            new = {item.service_id: item for item in after.for_node(name, tags.get(node_id, ()))}
            starts = sorted(new.keys() - old.keys())
            stops = sorted(old.keys() - new.keys())
            changes = sorted(key for key in new.keys() & old.keys() if new[key].fingerprint != old[key].fingerprint)
            if starts or stops or changes:
                found.append(
                    FlowImpact(node_id=node_id, node=name, online=online, starts=starts, stops=stops, changes=changes)
                )
        return found

    async def _get(self, flow_id: str) -> Flow:
        flow = await self._flows.get(self._work.organization_id, flow_id)
        if flow is None:
            raise NotFoundError(f"There is no flow {flow_id}; it may have been deleted.", code="flow_not_found")
        return flow

    async def _check_name(self, name: str, flow: Flow | None) -> None:
        other = await self._flows.by_name(self._work.organization_id, name)
        if other is not None and (flow is None or other.id != flow.id):
            raise ConflictError(
                f"There is a flow {other.name} already; choose another name.", code="flow_name_taken", field="name"
            )

    async def _activities(
        self, forms: Sequence[ActivityForm], stored: dict[str, FlowActivity]
    ) -> builtins.list[FlowActivity]:
        """The rows of these forms, the stored ones changed in place."""
        rows: builtins.list[FlowActivity] = []
        for draft in await self._drafts(forms, stored):
            row = stored.get(draft.id)
            if row is None:
                rows.append(draft)
                continue
            for key in ("position", "service_id", "version", "host", "static", "security", "enabled"):
                setattr(row, key, getattr(draft, key))
            rows.append(row)
        return rows

    async def _drafts(
        self, forms: Sequence[ActivityForm], stored: dict[str, FlowActivity]
    ) -> builtins.list[FlowActivity]:
        seen: set[str] = set()
        size = 0
        drafts: builtins.list[FlowActivity] = []
        for position, form in enumerate(forms):
            where = f"activities.{position}"
            if form.id is not None and (form.id not in stored or form.id in seen):
                raise InvalidError(
                    f"Activity {position + 1} has the id {form.id}, which is not one of this flow's; leave the id out "
                    "for a new activity.",
                    code="activity_not_found",
                    field=f"{where}.id",
                )
            old = stored.get(form.id) if form.id is not None else None
            service = await self._service(form, where)
            definitions = PropertyDefinitions.model_validate(service.properties)
            kept = decode_security(self._work.portal.vault, old.security if old else None)
            security = {key: kept.get(key) if value == MASK else value for key, value in form.security.items()}
            secret = _checked(service.file, "security", definitions.security, security, where)
            static = _checked(service.file, "static", definitions.static, form.static, where)
            size += len(msgspec.json.encode([static, secret]))
            if size > VALUES_LIMIT_BYTES:
                raise InvalidError(
                    f"The values of this flow are larger than {VALUES_LIMIT_BYTES // 1024} KiB; keep what is large "
                    "where the service can fetch it.",
                    code="values_too_large",
                    field=where,
                )
            drafts.append(
                FlowActivity(
                    id=form.id or str(uuid.uuid4()),
                    organization_id=self._work.organization_id,
                    service_id=service.id,
                    position=position,
                    version=form.version,
                    host=form.host,
                    static=static,
                    security=encode_security(self._work.portal.vault, secret),
                    enabled=form.enabled,
                )
            )
            seen.add(drafts[-1].id)
        return drafts

    async def _service(self, form: ActivityForm, where: str) -> Service:
        organization_id = self._work.organization_id
        service = await self._services.get(organization_id, form.service_id)
        if service is None:
            raise InvalidError(
                f"There is no service {form.service_id}; a service's id is its file's name in lower case, the dot an "
                "underscore.",
                code="service_not_found",
                field=f"{where}.service_id",
            )
        if form.version != "latest":
            version = await self._services.version(organization_id, service.id, form.version)
            if version is None or version.version != form.version:
                raise InvalidError(
                    f"{service.file} has no version {form.version}.",
                    code="version_not_found",
                    field=f"{where}.version",
                )
        return service

    def _touch(self, flow: Flow) -> None:
        flow.updated_at = self._work.portal.now()
        flow.updated_by = self._work.caller.name
        self._changed(flow.id)

    def _changed(self, flow_id: str) -> None:
        portal = self._work.portal
        organization_id = self._work.organization_id

        def tell() -> None:
            portal.assignments_changed(organization_id)
            portal.bus.publish(catalog_topic(organization_id), {"change": "flow", "id": flow_id})

        self._work.after_commit(tell)

    async def _builder(self) -> PlanBuilder:
        return await PlanBuilder.load(self._work.session, self._work.organization_id, self._work.portal.vault)

    async def _views(self, flows: Sequence[Flow]) -> builtins.list[FlowView]:
        if not flows:
            return []
        organization_id = self._work.organization_id
        names = {service.id: service.name for service in await self._services.all(organization_id)}
        builder = await self._builder()
        counts = await self._counts(builder)
        vault = self._work.portal.vault
        return [
            FlowView(
                id=flow.id,
                name=flow.name,
                description=flow.description,
                enabled=flow.enabled,
                activities=[
                    ActivityView(
                        id=activity.id,
                        service_id=activity.service_id,
                        service_name=names.get(activity.service_id, activity.service_id),
                        version=activity.version,
                        resolved_version=f"{row.major}.{row.minor}"
                        if (row := builder.resolve(activity.service_id, activity.version))
                        else "",
                        host=activity.host,
                        static=activity.static,
                        security=dict.fromkeys(decode_security(vault, activity.security), MASK),
                        enabled=activity.enabled,
                        nodes=counts.get(activity.id, 0),
                    )
                    for activity in flow.activities
                ],
                updated_at=flow.updated_at,
                updated_by=flow.updated_by,
            )
            for flow in flows
        ]

    async def _counts(self, builder: PlanBuilder) -> dict[str, int]:
        """On how many nodes each activity counts."""
        plan = builder.plan(await self._flows.all(self._work.organization_id))
        tags = await self._nodes.tags_of_all(self._work.organization_id)
        counts: dict[str, int] = {}
        for node_id, name, _ in await self._nodes.names(self._work.organization_id):
            for item in plan.for_node(name, tags.get(node_id, ())):
                counts[item.activity_id] = counts.get(item.activity_id, 0) + 1
        return counts


def _checked(
    file: str, group: str, definitions: Sequence[PropertyDefinition], values: dict[str, Any], where: str
) -> dict[str, Any]:
    """The values as their definitions' types. Raises InvalidError naming the property."""
    known = {definition.id: definition for definition in definitions}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        definition = known.get(key)
        if definition is None:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidError(
                f"{file} has no {group} property {key!r}; {there}. Define it in the service first.",
                code="property_unknown",
                field=f"{where}.{group}.{key}",
            )
        if value is None or value == "":
            continue
        checked[key] = _converted(file, definition, value, f"{where}.{group}.{key}")
    for definition in definitions:
        if definition.required and definition.id not in checked and definition.default in (None, ""):
            raise InvalidError(
                f"{file} needs a value for its {group} property {definition.label or definition.id}.",
                code="property_missing",
                field=f"{where}.{group}.{definition.id}",
            )
    return checked


def _converted(file: str, definition: PropertyDefinition, value: Any, where: str) -> Any:
    match definition.type:
        case "number":
            number = _number(value)
            if number is not None:
                return number
            expected = "a number"
        case "boolean":
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
                return value.lower() in _TRUE
            expected = "true or false"
        case "select":
            if value in definition.options:
                return value
            expected = f"one of {', '.join(definition.options)}"
        case _:
            if isinstance(value, str | int | float):
                return str(value)
            expected = "a text"
    raise InvalidError(
        f"The property {definition.label or definition.id} of {file} must be {expected}.",
        code="property_invalid",
        field=where,
    )


def _number(value: Any) -> int | float | None:
    """A number, or a text that is one; None for what JSON cannot hold too."""
    if isinstance(value, str):
        for parse in (int, float):
            try:
                value = parse(value)
            except ValueError:
                continue
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _NUMBER_LIMIT:
        return None
    # A service gets its values in an encoding whose integers have 64 bits.
    return value if abs(value) < 2**63 else float(value)
