"""The page of one flow, new or stored: a form made from the services' property definitions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nicegui import background_tasks, ui
from pydantic import ValidationError

from portal.errors import NotSignedInError, PortalError
from portal.flows.views import MASK, ActivityForm, ActivityView, FlowForm, FlowImpact, FlowView
from portal.services.views import PropertyDefinition, ServiceDetail
from portal.web.components import (
    Button,
    Choice,
    Tag,
    TextField,
    Toggle,
    confirm,
    empty,
    keep_from_leaving,
    panel,
    status,
    tell,
)
from portal.web.shell import page, page_head
from portal.web.values import shown_value, typed_value
from portal.web.visit import Visit, first_problem

CALCULATE_AFTER_SECONDS = 0.4
LISTED = 500
ALL_NODES = "#ALL"


class Control(Protocol):
    """What holds a value as text."""

    value: str


@page("/flows/new", title="New flow", section="flows")
async def new_flow_page(visit: Visit, host: str = "", service: str = "") -> None:
    """A flow that is not stored yet; `host` and `service` fill its first activity."""
    shown = FlowShown(visit, None, await Choices.read(visit))
    if host or service:
        await shown.add(service_id=service, host=host or ALL_NODES)


@page("/flows/{flow_id}", title="Flow", section="flows")
async def flow_page(visit: Visit, flow_id: str) -> None:
    """A stored flow."""
    async with visit.reading() as work:
        flow = await work.flows.get(flow_id)
    ui.page_title(f"{flow.name} · Outstation")
    shown = FlowShown(visit, flow, await Choices.read(visit))
    for activity in flow.activities:
        await shown.add(activity=activity)
    shown.settled()


@dataclass(frozen=True, slots=True)
class Choices:
    """What a flow can be made of."""

    services: list[tuple[str, str]]
    hosts: list[str]

    @classmethod
    async def read(cls, visit: Visit) -> Choices:
        """Read the services, and the places they can run on: all nodes, tags, names."""
        async with visit.reading() as work:
            services = (await work.services.list(limit=LISTED)).items
            tags = await work.nodes.tags()
            nodes = (await work.nodes.list(limit=LISTED)).items
        return cls(
            services=[
                (each.id, f"{each.name} ({each.file})" if each.name != each.class_name else each.file)
                for each in services
            ],
            hosts=[ALL_NODES, *(f"#{tag.tag}" for tag in tags), *(node.name for node in nodes)],
        )


@dataclass
class Activity:
    """The controls of one service in the flow."""

    id: str | None
    card: Tag
    service: Choice
    version: Choice
    host: TextField
    enabled: Toggle
    values: Tag
    kept: dict[str, Any] = field(default_factory=dict)
    """Static values as stored, for the service that the activity had when it was opened."""
    secrets: dict[str, Any] = field(default_factory=dict)
    static: dict[str, tuple[PropertyDefinition, Control]] = field(default_factory=dict)
    security: dict[str, TextField] = field(default_factory=dict)

    def form(self) -> ActivityForm:
        """What the controls say. Raises ValidationError."""
        static = {name: typed_value(each.type, control.value) for name, (each, control) in self.static.items()}
        security = {
            name: control.value or MASK
            for name, control in self.security.items()
            if control.value or name in self.secrets
        }
        return ActivityForm(
            id=self.id,
            service_id=self.service.value,
            version=self.version.value,
            host=self.host.value.strip(),
            static={name: value for name, value in static.items() if value is not None},
            security=security,
            enabled=self.enabled.value,
        )


class FlowShown:
    """The form, and beside it what storing it would change on which node."""

    def __init__(self, visit: Visit, flow: FlowView | None, choices: Choices) -> None:
        self._visit = visit
        self._flow = flow
        self._choices = choices
        self._edits = visit.may("operator")
        self._activities: list[Activity] = []
        self._services: dict[str, ServiceDetail] = {}
        self._calculating: asyncio.Task[None] | None = None
        self._settled = flow is None
        with page_head(flow.name if flow else "New flow", crumb=("Flows", "/flows")):
            if self._edits:
                Button("Save" if flow else "Create", visit.acting(self._save), kind="primary")
        with Tag("div", "", "columns"):
            with Tag("div", "", "stack stack-wide"):
                with panel("Flow"), Tag("div", "", "stack"):
                    self._name = TextField(
                        "Name", flow.name if flow else "", placeholder="Pumps", on_change=self._changed
                    )
                    self._description = TextField(
                        "Description", flow.description if flow else "", hint="Optional.", on_change=self._changed
                    )
                    self._enabled = Toggle(
                        "Flow",
                        flow.enabled if flow else True,
                        on_text="is on",
                        off_text="is off",
                        on_change=self._changed,
                    )
                with panel("Services") as aside:
                    if self._edits and choices.services:
                        with aside:
                            Button("Add a service", visit.acting(self.add), small=True, drawing="plus")
                    self._list = Tag("div", "", "stack")
                    self._nothing = Tag("div")
                    with self._nothing:
                        self._draw_nothing()
            with Tag("div", "", "stack stack-wide"):
                with panel("What saving changes", flush=True):
                    self._impact = Tag("div", "", "list", role="status", aria_live="polite")
                    with self._impact:
                        empty(
                            "Nothing.",
                            "Nodes that would start, stop or restart services are named here before you save.",
                        )
                if flow and self._edits:
                    with panel("Remove"), Tag("div", "", "stack"):
                        Tag("p", "Its services stop on their nodes, unless another flow assigns them too.", "muted")
                        with Tag("div"):
                            Button("Delete this flow", visit.acting(self._delete), kind="danger", drawing="trash")

    def settled(self) -> None:
        """Everything that is stored is shown: what changes from now on are changes."""
        self._settled = True

    def _draw_nothing(self) -> None:
        if not self._choices.services:
            with empty(
                "There is no service yet.", "Import one from the library, or write your own; then put it into a flow."
            ):
                Button("Go to the services", to="/services", kind="primary")
            return
        with empty("No service in this flow yet.", "Add one, and say where it runs."):
            if self._edits:
                Button("Add a service", self._visit.acting(self.add), kind="primary", drawing="plus")

    async def add(self, *, activity: ActivityView | None = None, service_id: str = "", host: str = ALL_NODES) -> None:
        """Add a card: for a stored activity, or a new one."""
        if not self._choices.services:
            return
        self._nothing.visible = False
        chosen = activity.service_id if activity else service_id or self._choices.services[0][0]
        with self._list, Tag("div", "", "card") as card:
            with Tag("div", "", "card-head"):
                enabled = Toggle(
                    "Service",
                    activity.enabled if activity else True,
                    on_text="is on",
                    off_text="is off",
                    on_change=self._changed,
                )
                if self._edits:
                    Button("Remove this service", lambda: self._remove(shown), kind="plain", drawing="trash", bare=True)
            with Tag("div", "", "card-body"):
                with Tag("div", "", "pair"):
                    service = Choice("Service", self._choices.services, chosen)
                    version = Choice(
                        "Version",
                        [("latest", "Newest")],
                        activity.version if activity else "latest",
                        on_change=self._changed,
                    )
                where = TextField(
                    "Runs on",
                    activity.host if activity else host,
                    suggestions=self._choices.hosts,
                    hint=f"A node's name, a tag such as #pumps, or {ALL_NODES}.",
                    mono=True,
                    on_change=self._changed,
                )
                values = Tag("div", "", "stack")
        shown = Activity(
            id=activity.id if activity else None,
            card=card,
            service=service,
            version=version,
            host=where,
            enabled=enabled,
            values=values,
            kept=dict(activity.static) if activity else {},
            secrets=dict(activity.security) if activity else {},
        )
        self._activities.append(shown)
        await self._fill(shown)

        async def chose(_: Any) -> None:
            shown.kept, shown.secrets = {}, {}
            shown.version.value = "latest"
            await self._visit.acting(lambda: self._fill(shown))()

        service.on_value_change(chose)
        self._changed()

    def _remove(self, activity: Activity) -> None:
        self._activities.remove(activity)
        activity.card.delete()
        self._nothing.visible = not self._activities
        self._changed()

    async def _fill(self, activity: Activity) -> None:
        service_id = activity.service.value
        if service_id not in self._services:
            async with self._visit.reading() as work:
                self._services[service_id] = await work.services.get(service_id)
        service = self._services[service_id]
        activity.version.offer(
            [("latest", f"Newest ({service.latest})"), *((each.version, each.version) for each in service.history)]
        )
        activity.static.clear()
        activity.security.clear()
        activity.values.clear()
        with activity.values:
            if service.properties.static:
                with Tag("div", "", "pair"):
                    for each in service.properties.static:
                        value = activity.kept.get(each.id, each.default)
                        activity.static[each.id] = (each, self._control(each, value))
            for each in service.properties.security:
                stored = each.id in activity.secrets
                activity.security[each.id] = TextField(
                    each.label or each.id,
                    type="password",
                    placeholder="Stored; type to replace it" if stored else "",
                    hint=each.help or "Secret: stored encrypted, never shown again.",
                    autocomplete="new-password",
                    on_change=self._changed,
                )
        self._changed()

    def _control(self, definition: PropertyDefinition, value: Any) -> Control:
        label = definition.label or definition.id
        text = shown_value(value)
        if definition.type in ("boolean", "select"):
            words = ["yes", "no"] if definition.type == "boolean" else definition.options
            options = [(word, word) for word in words]
            if text not in words:
                options.insert(0, (text, text or "Not set"))
            return Choice(label, options, text, on_change=self._changed, hint=definition.help)
        return TextField(
            label,
            text,
            hint=definition.help,
            inputmode="decimal" if definition.type == "number" else "text",
            required=definition.required,
            on_change=self._changed,
        )

    def _form(self) -> FlowForm:
        return FlowForm(
            name=self._name.value,
            description=self._description.value,
            enabled=self._enabled.value,
            activities=[activity.form() for activity in self._activities],
        )

    def _changed(self, _: Any = None) -> None:
        if not self._settled or not self._edits:
            return
        keep_from_leaving(changed=True)
        if self._calculating is not None:
            self._calculating.cancel()
        self._calculating = background_tasks.create(self._calculate_soon(), name="flow impact")

    async def _calculate_soon(self) -> None:
        await asyncio.sleep(CALCULATE_AFTER_SECONDS)
        if self._impact.is_deleted:
            return
        with self._impact:
            await self._calculate()

    async def _calculate(self) -> None:
        impact: Sequence[FlowImpact] = ()
        problem = ""
        try:
            form = self._form()
            async with self._visit.reading() as work:
                impact = await work.flows.impact(form, self._flow.id if self._flow else None)
        except NotSignedInError as error:
            self._visit.report(error)
            return
        except PortalError as error:
            problem = error.detail
        except ValidationError as error:
            problem = first_problem(error)
        self._impact.clear()
        with self._impact:
            if problem:
                with Tag("div", "", "row"):
                    status("warn", problem).classes("mark-long")
            elif not impact:
                empty("No node changes.", "Nothing starts, stops or restarts anywhere.")
            for each in impact:
                self._draw_impact(each)

    def _draw_impact(self, each: FlowImpact) -> None:
        with Tag("div", "", "row"):
            with Tag("div", "", "line line-apart"):
                Tag("span", each.node, "row-title")
                status(
                    "good" if each.online else "idle", "online" if each.online else "offline: when it is back", "small"
                )
            for word, services in (("starts", each.starts), ("stops", each.stops), ("restarts", each.changes)):
                if services:
                    Tag("div", f"{word} {', '.join(services)}", "small muted")

    async def _save(self) -> None:
        self._name.wrong("" if self._name.value.strip() else "Give the flow a name.")
        if not self._name.value.strip():
            return
        form = self._form()
        async with self._visit.writing() as work:
            if self._flow is None:
                flow = await work.flows.create(form)
            else:
                flow = await work.flows.change(self._flow.id, form)
        keep_from_leaving(changed=False)
        if self._flow is None:
            ui.navigate.to(f"/flows/{flow.id}")
            return
        self._flow = flow
        for shown, stored in zip(self._activities, flow.activities, strict=True):
            shown.id = stored.id
            shown.kept, shown.secrets = dict(stored.static), dict(stored.security)
            await self._fill(shown)
        self._settled = True
        keep_from_leaving(changed=False)
        tell("Saved. Nodes that it changes get it now, or when they are back.")

    async def _delete(self) -> None:
        if self._flow is not None and await confirm(
            f"Delete {self._flow.name}?", "Its services stop on every node that it runs on.", "Delete this flow"
        ):
            async with self._visit.writing() as work:
                await work.flows.delete(self._flow.id)
            keep_from_leaving(changed=False)
            ui.navigate.to("/flows")
